"""Pre-training of an unconditional DDPM from a recipe file.

    L = E_{x, t, ε} [ w_t ‖ε − ε_θ(√ᾱ_t x + √(1 − ᾱ_t) ε, t)‖² ],   w_t = min(SNR_t, γ) / SNR_t

Ho et al., arXiv 2006.11239; the weight is min-SNR (Hang et al., arXiv 2303.09556) for ε-prediction.
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from vdu.augmentation import mirrored
from vdu.averaged_training import TrainingRun, train_with_average
from vdu.checkpoint import replacing, write_tensors
from vdu.classifier import ClassifierSettings
from vdu.corpora import Corpus, load_corpus
from vdu.errors import VduError, nearest
from vdu.precision import autocast
from vdu.seeding import generator

__all__ = [
    "RECIPES",
    "Recipe",
    "Training",
    "checkpoint_path",
    "checkpoint_steps",
    "checkpoint_writer",
    "cycled_learning_rate",
    "min_snr_weight",
    "read_recipe",
    "train",
    "training_run",
]

RECIPES = Path(__file__).parent / "recipes"


class Training(BaseModel):
    """How long, how fast and from which seed."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    cycle_steps: list[int]
    batch_size: int
    learning_rate: float
    warmup_steps: int
    ema_decay: float
    min_snr_gamma: float
    max_gradient_norm: float
    precision: Literal["auto", "bf16", "fp32"]
    seed: int
    state_every_steps: int
    posterior_checkpoints: int
    posterior_from_fraction: float
    flip: bool = False  # each image is mirrored left to right with probability ½

    @property
    def steps(self) -> int:
        """Optimiser steps over all cycles."""
        return sum(self.cycle_steps)


class Recipe(BaseModel):
    """A model to train: corpus, `UNet2DModel` arguments, noise schedule, training settings, its judge.

    ``without``: classes that the network never sees, which makes it the oracle that unlearning is measured against.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    corpus: str
    unet: dict[str, Any]
    noise: dict[str, Any]
    training: Training
    classifier: ClassifierSettings = ClassifierSettings()
    without: list[str] = []

    def sha256(self) -> str:
        """Identifies what the model depends on: a state file of another recipe is refused on resume."""
        # Without settings at their default: a setting that is added later leaves older hashes and state files valid.
        settings = self.model_dump_json(exclude_defaults=True, exclude={"classifier"})
        return hashlib.sha256(settings.encode()).hexdigest()

    def comparable(self) -> str:
        """Identifies what an oracle shares with the model that saw every class: all but that, and the precision."""
        training = self.training.model_copy(update={"precision": "auto"})
        return self.model_copy(update={"without": [], "training": training}).sha256()

    def shorter(self) -> set[str]:
        """Hashes of this recipe without its last cycles: what they have left is gone on with."""
        cycles = self.training.cycle_steps
        first = (self.training.model_copy(update={"cycle_steps": cycles[:k]}) for k in range(1, len(cycles)))
        return {self.model_copy(update={"training": training}).sha256() for training in first}

    def load_corpus(self, data: Path, split: str = "train") -> Corpus:
        """The corpus in ``data`` at the size of the model. Raises `VduError` where both do not fit."""
        corpus = load_corpus(self.corpus, data, split)
        channels, size = self.unet.get("in_channels"), self.unet.get("sample_size")
        if channels != corpus.images.shape[1] or not isinstance(size, int):
            wanted = f"in_channels = {corpus.images.shape[1]} and a whole number as sample_size"
            raise VduError(f"recipe {self.name} does not fit {self.corpus}: its unet needs {wanted}")
        return corpus.resized(size)


def read_recipe(name: str, without: Collection[str] = ()) -> Recipe:
    """A shipped recipe by name or a TOML file by path; ``without`` as of `Recipe`.

    Raises `VduError` for unknown names and settings.
    """
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    if not path.is_file():
        known = [p.stem for p in RECIPES.glob("*.toml")]
        raise VduError(f"no recipe {name!r}: {nearest(name, known)}; or give a .toml file")
    try:
        recipe = Recipe.model_validate(tomllib.loads(path.read_text()))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise VduError(f"recipe {path.name} is not valid: {' '.join(str(error).split())}") from error
    return recipe.model_copy(update={"without": sorted(set(without))}) if without else recipe


def min_snr_weight(alpha_bar: Tensor, gamma: float) -> Tensor:
    """``min(SNR, γ) / SNR`` with ``SNR = ᾱ / (1 − ᾱ)``; same shape as ``alpha_bar``."""
    snr = alpha_bar / (1 - alpha_bar)
    return snr.clamp(max=gamma) / snr


def cycled_learning_rate(training: Training, step: int) -> float:
    """Cosine cycles with warm restarts, each after a linear warm-up (Loshchilov & Hutter, arXiv 1608.03983)."""
    start = 0
    for length in training.cycle_steps:
        if step < start + length:
            break
        start += length
    warm = min(1.0, (step - start + 1) / max(1, training.warmup_steps))
    return training.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * (step - start) / length))


def _loss(model: UNet2DModel, scheduler: DDPMScheduler, corpus: Corpus, training: Training, step: int) -> Tensor:
    g = generator(training.seed, "train", step)
    index = torch.randint(len(corpus.images), (training.batch_size,), generator=g)
    x = corpus.images[index].float() / 127.5 - 1
    if training.flip:
        # A stream of its own: flips leave the times and noises of a recipe without them as they are.
        x = mirrored(x, generator(training.seed, "flip", step))
    # Stratified times: one in each of B equal parts of the range, so that the loss varies less from batch to batch.
    share = (torch.arange(len(x)) + torch.rand(len(x), generator=g)) / len(x)
    t = (share * scheduler.config.num_train_timesteps).long().clamp(max=scheduler.config.num_train_timesteps - 1)
    eps = torch.randn(x.shape, generator=g)
    x_t = scheduler.add_noise(x, eps, t)
    with autocast(model, training.precision):
        error = model(x_t, t).sample.float() - eps
    weight = min_snr_weight(scheduler.alphas_cumprod[t], training.min_snr_gamma)
    return (weight * error.pow(2).mean(dim=(1, 2, 3))).mean()


def checkpoint_steps(training: Training) -> set[int]:
    """Evenly spaced steps in the last part of the run; the last step is one of them."""
    first = training.steps * training.posterior_from_fraction
    k = training.posterior_checkpoints
    return {round(first + (training.steps - first) * i / k) for i in range(1, k + 1)}


def train(recipe: Recipe, data: Path, out: Path) -> Path:
    """Train ``recipe`` on the corpus in ``data``; goes on where an earlier run into ``out`` stopped.

    A finished run goes on, too, once the recipe has further cycles. Writes ``out/pipeline`` (the EMA weights, a
    `DDPMPipeline` folder), ``out/checkpoints/step-*.safetensors`` (EMA weights, for the posterior), ``out/log.jsonl``
    and ``out/provenance.json``. Returns the pipeline folder.
    """
    corpus, settings = recipe.load_corpus(data).without(recipe.without), recipe.training
    torch.manual_seed(settings.seed)
    model, scheduler = UNet2DModel(**recipe.unet), DDPMScheduler(**recipe.noise)
    average = train_with_average(
        model,
        training_run(settings, out, recipe.sha256(), recipe.shorter()),
        lambda step: _loss(model, scheduler, corpus, settings, step),
        lambda step: cycled_learning_rate(settings, step),
        checkpoint_writer(settings, out, lambda average: average),
    )
    _finish(recipe, corpus, average, scheduler, out)
    return out / "pipeline"


def training_run(settings: Training, out: Path, identity: str, shorter: Collection[str] = ()) -> TrainingRun:
    """The files of a run into ``out``; ``identity`` and ``shorter`` as of `TrainingRun`."""
    return TrainingRun(
        settings.steps,
        settings.state_every_steps,
        settings.ema_decay,
        settings.max_gradient_norm,
        out / "state.safetensors",
        out / "log.jsonl",
        identity,
        shorter,
    )


def checkpoint_writer(
    settings: Training, out: Path, network: Callable[[nn.Module], nn.Module]
) -> Callable[[int, nn.Module], None]:
    """Writes the averaged ``network`` at the steps that the posterior is made from."""
    steps = checkpoint_steps(settings)

    def write(done: int, average: nn.Module) -> None:
        if done in steps:
            write_tensors(checkpoint_path(out, done), network(average).state_dict())

    return write


def checkpoint_path(out: Path, step: int) -> Path:
    """Where the averaged weights after ``step`` steps lie."""
    return out / "checkpoints" / f"step-{step:06d}.safetensors"


def _finish(recipe: Recipe, corpus: Corpus, average: UNet2DModel, scheduler: DDPMScheduler, out: Path) -> None:
    with replacing(out / "pipeline") as beside:
        DDPMPipeline(unet=average, scheduler=scheduler).save_pretrained(beside)
    provenance = {
        "command": " ".join(
            [f"vdu train {recipe.name} --data DATA --out OUT", *(f"--without {c}" for c in recipe.without)]
        ),
        "recipe": recipe.model_dump(),
        "recipe_sha256": recipe.sha256(),
        "data_sha256": corpus.sha256,
        "images": len(corpus.images),
        "torch": torch.__version__,
    }
    (out / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
