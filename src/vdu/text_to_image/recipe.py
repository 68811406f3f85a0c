"""What a miniature Stable Diffusion is made of and how long each part is trained: one TOML file."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from vdu.classifier import ClassifierSettings
from vdu.errors import VduError
from vdu.training import RECIPES, Training

__all__ = ["AutoencoderTraining", "TextRecipe", "is_text_recipe", "read_text_recipe"]


class AutoencoderTraining(BaseModel):
    """``kl_weight``: of the latents' mean KL to a standard normal beside the pixels' mean absolute error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    steps: int
    batch_size: int
    learning_rate: float
    ema_decay: float
    kl_weight: float
    precision: Literal["auto", "bf16", "fp32"]
    seed: int
    state_every_steps: int


class TextRecipe(BaseModel):
    """``autoencoder``, ``text_encoder``, ``unet``, ``noise``: arguments of the diffusers and transformers classes.

    ``merges``: how many of CLIP's byte-pair merges the tokenizer keeps. ``judges``: of the style and of the object.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    corpus: Literal["emoji"]
    size: int
    merges: int
    autoencoder: dict[str, Any]
    autoencoder_training: AutoencoderTraining
    text_encoder: dict[str, Any]
    unet: dict[str, Any]
    noise: dict[str, Any]
    training: Training
    judges: dict[str, ClassifierSettings]

    def sha256(self, *parts: str) -> str:
        """Identifies what the ``parts`` of the model (all, when none is named) depend on."""
        text = self.model_dump_json(include=set(parts) or None, exclude=None if parts else {"judges"})
        return hashlib.sha256(text.encode()).hexdigest()


def _path(name: str) -> Path:
    return Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"


def is_text_recipe(name: str) -> bool:
    """Whether this recipe is of a text-to-image model."""
    try:
        return "text_encoder" in tomllib.loads(_path(name).read_text())
    except (OSError, tomllib.TOMLDecodeError):
        return False


def read_text_recipe(name: str) -> TextRecipe:
    """A shipped recipe by name or a TOML file by path. Raises `VduError` for unknown settings."""
    try:
        return TextRecipe.model_validate(tomllib.loads(_path(name).read_text()))
    except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise VduError(f"recipe {name} is not valid: {' '.join(str(error).split())}") from error
