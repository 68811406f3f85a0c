"""Pre-training of an unconditional DDPM from a recipe file.

    L = E_{x, t, ε} [ w_t ‖ε − ε_θ(√ᾱ_t x + √(1 − ᾱ_t) ε, t)‖² ],   w_t = min(SNR_t, γ) / SNR_t

Ho et al., arXiv 2006.11239; the weight is min-SNR (Hang et al., arXiv 2303.09556) for ε-prediction.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
import tomllib
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from vdu.augmentation import mirrored
from vdu.checkpoint import load_state, replacing, save_state, write_tensors
from vdu.classifier import ClassifierSettings
from vdu.corpora import Corpus, load_corpus
from vdu.ema import ema_update
from vdu.errors import VduError, nearest
from vdu.seeding import generator

__all__ = [
    "RECIPES",
    "Recipe",
    "Training",
    "checkpoint_steps",
    "cycled_learning_rate",
    "min_snr_weight",
    "read_recipe",
    "train",
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
    precision: Literal["fp32", "bf16"]
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
    """A model to train: corpus, `UNet2DModel` arguments, noise schedule, training settings, its judge."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    corpus: str
    unet: dict[str, Any]
    noise: dict[str, Any]
    training: Training
    classifier: ClassifierSettings = ClassifierSettings()

    def sha256(self) -> str:
        """Identifies what the model depends on: a state file of another recipe is refused on resume."""
        # Without settings at their default: a setting that is added later leaves older hashes and state files valid.
        settings = self.model_dump_json(exclude_defaults=True, exclude={"classifier"})
        return hashlib.sha256(settings.encode()).hexdigest()

    def load_corpus(self, data: Path, split: str = "train") -> Corpus:
        """The corpus in ``data`` at the size of the model. Raises `VduError` where both do not fit."""
        corpus = load_corpus(self.corpus, data, split)
        channels, size = self.unet.get("in_channels"), self.unet.get("sample_size")
        if channels != corpus.images.shape[1] or not isinstance(size, int):
            wanted = f"in_channels = {corpus.images.shape[1]} and a whole number as sample_size"
            raise VduError(f"recipe {self.name} does not fit {self.corpus}: its unet needs {wanted}")
        return corpus.resized(size)


def read_recipe(name: str) -> Recipe:
    """A shipped recipe by name or a TOML file by path. Raises `VduError` for unknown names and settings."""
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    if not path.is_file():
        known = [p.stem for p in RECIPES.glob("*.toml")]
        raise VduError(f"no recipe {name!r}: {nearest(name, known)}; or give a .toml file")
    try:
        return Recipe.model_validate(tomllib.loads(path.read_text()))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise VduError(f"recipe {path.name} is not valid: {' '.join(str(error).split())}") from error


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
    with torch.autocast("cpu", torch.bfloat16, enabled=training.precision == "bf16"):
        error = model(x_t, t).sample.float() - eps
    weight = min_snr_weight(scheduler.alphas_cumprod[t], training.min_snr_gamma)
    return (weight * error.pow(2).mean(dim=(1, 2, 3))).mean()


def checkpoint_steps(training: Training) -> set[int]:
    """Evenly spaced steps in the last part of the run; the last step is one of them."""
    first = training.steps * training.posterior_from_fraction
    k = training.posterior_checkpoints
    return {round(first + (training.steps - first) * i / k) for i in range(1, k + 1)}


def train(recipe: Recipe, data: Path, out: Path, log_every_steps: int = 50) -> Path:
    """Train ``recipe`` on the corpus in ``data``; goes on where an earlier run into ``out`` stopped.

    Writes ``out/pipeline`` (the EMA weights, a `DDPMPipeline` folder), ``out/checkpoints/step-*.safetensors`` (EMA
    weights, for the posterior), ``out/log.jsonl`` and ``out/provenance.json``. Returns the pipeline folder.
    """
    corpus, settings = recipe.load_corpus(data), recipe.training
    torch.manual_seed(settings.seed)
    model = UNet2DModel(**recipe.unet)
    average = copy.deepcopy(model).eval()
    scheduler = DDPMScheduler(**recipe.noise)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    state_path, modules = out / "state.safetensors", {"model": model, "ema": average}
    first = load_state(state_path, modules, optimizer, recipe.sha256()) if state_path.exists() else 0
    out.mkdir(parents=True, exist_ok=True)
    saved_at, started = checkpoint_steps(settings), time.monotonic()
    total = 0.0
    with (out / "log.jsonl").open("a") as log:
        for step in range(first, settings.steps):
            for group in optimizer.param_groups:
                group["lr"] = cycled_learning_rate(settings, step)
            loss = _loss(model, scheduler, corpus, settings, step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_gradient_norm)
            optimizer.step()
            ema_update(average, model, settings.ema_decay, step)
            total, done = total + loss.item(), step + 1
            if done % log_every_steps == 0:
                seconds = round(time.monotonic() - started, 1)
                log.write(json.dumps({"step": done, "loss": total / log_every_steps, "seconds": seconds}) + "\n")
                log.flush()
                total = 0.0
            if done in saved_at:
                write_tensors(out / "checkpoints" / f"step-{done:06d}.safetensors", average.state_dict())
            if done % settings.state_every_steps == 0:
                save_state(state_path, done, modules, optimizer, recipe.sha256())
    _finish(recipe, corpus, average, scheduler, out)
    return out / "pipeline"


def _finish(recipe: Recipe, corpus: Corpus, average: UNet2DModel, scheduler: DDPMScheduler, out: Path) -> None:
    with replacing(out / "pipeline") as beside:
        DDPMPipeline(unet=average, scheduler=scheduler).save_pretrained(beside)
    provenance = {
        "command": f"vdu train {recipe.name} --data DATA --out OUT",
        "recipe": recipe.model_dump(),
        "recipe_sha256": recipe.sha256(),
        "data_sha256": corpus.sha256,
        "images": len(corpus.images),
        "torch": torch.__version__,
    }
    (out / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
