"""Pre-training of an unconditional DDPM from a recipe.

    min over θ of the `training_loss`, AdamW with warm restarts;   rate_s = r · min(1, (s' + 1) / W) · cosine(s')

s' counts the steps of the cycle that step s is in, W are its warm-up's (Loshchilov & Hutter, arXiv 1608.03983).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from pydantic import BaseModel
from torch import Tensor, nn

from vdu.corpora import Corpus
from vdu.corpora.emoji import Emoji
from vdu.diffusion.training_loss import training_loss
from vdu.errors import VduError
from vdu.output import refuse_existing, replacing
from vdu.precision import autocast
from vdu.records import write_record
from vdu.seeding import generator
from vdu.training.augmentation import mirrored
from vdu.training.averaged_training import TrainingRun, train_with_average
from vdu.training.recipe import Recipe, Training
from vdu.training.starting_weights import starting_weights
from vdu.weights.checkpoint import write_tensors
from vdu.weights.schedules import cosine_to_zero

if TYPE_CHECKING:
    from vdu.training.text_to_image.recipe import TextRecipe

__all__ = [
    "checkpoint_path",
    "checkpoint_writer",
    "cycled_learning_rate",
    "refuse_other_data",
    "refuse_other_folder",
    "train",
    "training_run",
    "write_provenance",
]


# What a run writes first, and what it goes on from.
MARKS = ("log.jsonl", "state.safetensors", "autoencoder-log.jsonl", "autoencoder-state.safetensors", "autoencoder")


def cycled_learning_rate(training: Training, step: int) -> float:
    """``rate_s`` of ``step``: cosine cycles, each after a linear warm-up."""
    start = 0
    for length in training.cycle_steps:
        if step < start + length:
            break
        start += length
    warm = min(1.0, (step - start + 1) / max(1, training.warmup_steps))
    return training.learning_rate * warm * cosine_to_zero(step - start, length)


def _loss(model: UNet2DModel, scheduler: DDPMScheduler, corpus: Corpus, training: Training, step: int) -> Tensor:
    g = generator(training.seed, "train", step)
    index = torch.randint(len(corpus.images), (training.batch_size,), generator=g)
    x = corpus.images[index].float() / 127.5 - 1
    if training.flip:
        # A stream of its own: flips leave the times and noises of a recipe without them as they are.
        x = mirrored(x, generator(training.seed, "flip", step))

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        with autocast(model, training.precision):
            return model(x_t, t).sample

    return training_loss(predict, scheduler, x, training.min_snr_gamma, g)


def train(recipe: Recipe, data: Path, out: Path) -> Path:
    """Train ``recipe`` on the corpus in ``data``; goes on where an earlier run into ``out`` stopped.

    A finished run goes on, too, once the recipe has further cycles. Writes ``out/pipeline`` (the EMA weights, a
    `DDPMPipeline` folder), ``out/checkpoints/step-*.safetensors`` (EMA weights, for the posterior), ``out/log.jsonl``
    and ``out/provenance.json``. Returns the pipeline folder. Raises `VduError` for a folder that is of something else.
    """
    refuse_other_folder(out)
    settings = recipe.training
    scheduler = DDPMScheduler(**recipe.noise)
    model, begun = starting_weights(recipe, scheduler)
    corpus = recipe.load_corpus(data).without(recipe.without)
    average = train_with_average(
        model,
        training_run(settings, out, recipe, corpus.sha256),
        lambda step: _loss(model, scheduler, corpus, settings, step),
        lambda step: cycled_learning_rate(settings, step),
        checkpoint_writer(settings, out, lambda average: average),
    )
    with replacing(out / "pipeline") as beside:
        DDPMPipeline(unet=average, scheduler=scheduler).save_pretrained(beside)
    without = "".join(f" --without {name}" for name in recipe.without)
    command = f"vdu train {recipe.name} --data DATA --out OUT{without}"
    write_provenance(out, command, recipe, recipe.sha256(), corpus, begun)
    return out / "pipeline"


def refuse_other_folder(out: Path) -> None:
    """Raise `VduError` for a folder that is neither empty nor of a run, and for one that cannot be written."""
    begun = any((out / name).exists() for name in MARKS)
    if not begun and out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise VduError(f"{out} holds what `vdu train` did not write: choose another --out")
    refuse_existing(out / "state.safetensors", overwrite=True)


def refuse_other_data(run: Path, provenance: dict[str, Any], data: Path, data_sha256: str) -> None:
    """Raise `VduError` where the run with that ``provenance`` was trained on other files than those in ``data``."""
    if provenance.get("data_sha256") != data_sha256:
        raise VduError(f"{run} was trained on other files than {data} holds (packed ones differ too): give those")


def training_run(settings: Training, out: Path, recipe: Recipe | TextRecipe, data_sha256: str) -> TrainingRun:
    """The files of a run of ``recipe`` into ``out``, which is gone on with on the same data only."""
    return TrainingRun(
        settings.steps,
        settings.state_every_steps,
        settings.ema_decay,
        settings.max_gradient_norm,
        out / "state.safetensors",
        out / "log.jsonl",
        f"{recipe.sha256()} {data_sha256}",
        {f"{shorter} {data_sha256}" for shorter in recipe.shorter()},
    )


def checkpoint_writer(
    settings: Training, out: Path, network: Callable[[nn.Module], nn.Module]
) -> Callable[[int, nn.Module], None]:
    """Writes the averaged ``network`` at the steps that the posterior is made from."""
    steps = settings.checkpoint_steps()

    def write(done: int, average: nn.Module) -> None:
        if done in steps:
            write_tensors(checkpoint_path(out, done), network(average).state_dict())

    return write


def checkpoint_path(out: Path, step: int) -> Path:
    """Where the averaged weights after ``step`` steps lie."""
    return out / "checkpoints" / f"step-{step:06d}.safetensors"


def write_provenance(
    out: Path,
    command: str,
    recipe: BaseModel,
    sha256: str,
    corpus: Corpus | Emoji,
    begun: dict[str, Any] | None = None,
) -> None:
    """``out/provenance.json``: what the pipeline beside it was trained from, ``begun`` as of `starting_weights`."""
    provenance = {
        "command": command,
        "recipe": recipe.model_dump(),
        "recipe_sha256": sha256,
        "data_sha256": corpus.sha256,
        "images": len(corpus.images),
        "torch": torch.__version__,
    } | (begun or {})
    write_record(out / "provenance.json", provenance)
