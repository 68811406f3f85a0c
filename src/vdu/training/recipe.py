"""What an unconditional DDPM is made of and how long it is trained: one TOML file, checked before any work."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import torch
from diffusers import DDPMScheduler, UNet2DModel
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from vdu.backbone.acceptance import PREDICTION_TYPES
from vdu.bounds import Count, Fraction, Positive, Seed
from vdu.corpora import Corpus, load_corpus
from vdu.errors import VduError, in_one_line, nearest
from vdu.settings_file import checked, read_toml
from vdu.training.classifier import ClassifierSettings

__all__ = ["RECIPES", "Recipe", "Training", "check_noise", "check_shape", "made", "read_recipe"]

RECIPES = Path(__file__).parent / "recipes"
P = TypeVar("P")


class Training(BaseModel):
    """How long, how fast and from which seed."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    cycle_steps: Annotated[list[Count], Field(min_length=1)]
    batch_size: Count
    learning_rate: Positive
    warmup_steps: Annotated[int, Field(ge=0)]
    ema_decay: Fraction
    min_snr_gamma: Positive
    max_gradient_norm: Positive
    precision: Literal["auto", "bf16", "fp32"]
    seed: Seed
    state_every_steps: Count
    posterior_checkpoints: Count
    posterior_from_fraction: Fraction
    flip: bool = False  # each image is mirrored left to right with probability ½

    @model_validator(mode="after")
    def _has_its_checkpoints(self) -> Self:
        wanted, there = self.posterior_checkpoints, len(self.checkpoint_steps() - {0})
        if there < wanted:
            last = f"the last {1 - self.posterior_from_fraction:.0%} of {self.steps} steps"
            raise ValueError(f"posterior_checkpoints = {wanted}: {last} have room for {there}")
        return self

    @property
    def steps(self) -> int:
        """Optimiser steps over all cycles."""
        return sum(self.cycle_steps)

    def checkpoint_steps(self) -> set[int]:
        """Evenly spaced steps in the last part of the run; the last step is one of them."""
        first = self.steps * self.posterior_from_fraction
        k = self.posterior_checkpoints
        return {round(first + (self.steps - first) * i / k) for i in range(1, k + 1)}

    def shorter(self) -> list[Training]:
        """These settings without their last cycles: runs of which this one is the continuation."""
        cycles = self.cycle_steps
        return [self.model_copy(update={"cycle_steps": cycles[:k]}) for k in range(1, len(cycles))]


def made(kind: type[P], table: str, settings: dict[str, Any]) -> P:
    """``kind(**settings)``. Raises ValueError, which names the ``table``, for settings that it does not take."""
    known = inspect.signature(kind).parameters
    for name in settings:
        if name not in known:
            raise ValueError(f"{table} has no setting {name!r}: {nearest(name, known)}")
    try:
        return kind(**settings)
    except Exception as error:  # diffusers and torch complain in many ways
        raise ValueError(f"{table} makes no {kind.__name__}: {in_one_line(error)}") from error


def check_noise(settings: dict[str, Any]) -> None:
    """Raises ValueError for settings that make no `DDPMScheduler`, or one of a prediction type that is not known."""
    kind = made(DDPMScheduler, "noise", settings).config.prediction_type
    if kind not in PREDICTION_TYPES:
        raise ValueError(f"noise.prediction_type = {kind!r}: {nearest(kind, PREDICTION_TYPES)}")


@torch.no_grad()
def check_shape(table: str, network: nn.Module, x_t: Tensor, **condition: Tensor) -> None:
    """Raises ValueError, which names the ``table``, for a network that does not keep the shape of ``x_t``."""
    wanted = list(x_t.shape[1:])
    try:
        found = list(network(x_t, torch.zeros(1).long(), **condition).sample.shape[1:])
    except Exception as error:
        raise ValueError(f"{table} does not take {wanted}: {in_one_line(error)}") from error
    if found != wanted:
        raise ValueError(f"{table} must keep the shape of what is noised, {wanted}, and makes {found} of it")


class Recipe(BaseModel):
    """A model to train: corpus, `UNet2DModel` arguments, noise schedule, training settings, its judge.

    ``start_from``: a DDPM of the same geometry, by its zoo name or folder, whose weights the training begins with.
    ``without``: classes that the network never sees, which makes it the oracle that unlearning is measured against.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    corpus: str
    unet: dict[str, Any]
    noise: dict[str, Any]
    training: Training
    classifier: ClassifierSettings = ClassifierSettings()
    start_from: str | None = None
    without: list[str] = []

    @model_validator(mode="after")
    def _makes_a_network(self) -> Self:
        check_noise(self.noise)
        channels, size = self.unet.get("in_channels"), self.unet.get("sample_size")
        if not isinstance(channels, int) or not isinstance(size, int):
            raise ValueError("unet needs whole numbers as in_channels and sample_size")
        with torch.device("meta"):  # shapes only, no numbers
            check_shape("unet", made(UNet2DModel, "unet", self.unet), torch.empty(1, channels, size, size))
        return self

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
        return {self.model_copy(update={"training": training}).sha256() for training in self.training.shorter()}

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
    recipe = checked("recipe", name, Recipe, read_toml("recipe", name, RECIPES))
    return recipe.model_copy(update={"without": sorted(set(without))}) if without else recipe
