"""What a miniature Stable Diffusion is made of and how long each part is trained: one TOML file."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from pydantic import BaseModel, ConfigDict, Field, model_validator

from vdu.bounds import Count, Fraction, NotNegative, Positive, Seed
from vdu.errors import VduError
from vdu.settings_file import checked, read_toml
from vdu.training.classifier import ClassifierSettings
from vdu.training.recipe import RECIPES, Training, check_noise, check_shape, made

if TYPE_CHECKING:
    from transformers import CLIPTextConfig

__all__ = ["AutoencoderTraining", "Domain", "TextRecipe", "is_text_recipe", "read_text_recipe"]

Domain = Literal["style", "object"]
OF_THE_TOKENIZER = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
# Trailing: a solver of few steps starts at the very last time, as the library's own sampler does.
SAMPLING = {"set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "trailing"}


class AutoencoderTraining(BaseModel):
    """``kl_weight``: of the latents' mean KL to a standard normal beside the pixels' mean absolute error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    steps: Count
    batch_size: Count
    learning_rate: Positive
    ema_decay: Fraction
    kl_weight: NotNegative
    precision: Literal["auto", "bf16", "fp32"]
    seed: Seed
    state_every_steps: Count


class TextRecipe(BaseModel):
    """``autoencoder``, ``text_encoder``, ``unet``, ``noise``: arguments of the diffusers and transformers classes.

    ``merges``: how many of CLIP's byte-pair merges the tokenizer keeps. ``judges``: of the style and of the object.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    corpus: Literal["emoji"]
    size: Count
    merges: Annotated[int, Field(ge=0)]
    autoencoder: dict[str, Any]
    autoencoder_training: AutoencoderTraining
    text_encoder: dict[str, Any]
    unet: dict[str, Any]
    noise: dict[str, Any]
    training: Training
    judges: Annotated[dict[Domain, ClassifierSettings], Field(min_length=2)]

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.training.flip:
            raise ValueError("training.flip = true: a model with text is trained without flips, set it to false")
        check_noise(self.noise)
        self.sampling_scheduler()
        with torch.device("meta"), torch.no_grad():  # shapes only, no numbers
            vae = made(AutoencoderKL, "autoencoder", self.autoencoder)
            z = vae.encode(torch.empty(1, 3, self.size, self.size)).latent_dist.mode()
            config = self.text_config()
            text = torch.empty(1, config.max_position_embeddings, config.hidden_size)
            check_shape("unet", made(UNet2DConditionModel, "unet", self.unet), z, encoder_hidden_states=text)
        if self.unet.get("sample_size") != z.shape[-1]:
            raise ValueError(f"unet.sample_size must be that of the latents, {z.shape[-1]}")
        return self

    def text_config(self, **tokenizer: int) -> CLIPTextConfig:
        """Of the text encoder; ``tokenizer``: its size and marks. Raises ValueError for settings that are none."""
        try:
            from transformers import CLIPTextConfig
        except ImportError as error:
            raise VduError("a text-to-image recipe needs a package: pip install transformers") from error
        for name in self.text_encoder:
            if name in OF_THE_TOKENIZER:
                raise ValueError(f"text_encoder.{name} follows from the tokenizer: leave it out")
        return made(CLIPTextConfig, "text_encoder", self.text_encoder | tokenizer)

    def sampling_scheduler(self) -> DDIMScheduler:
        """What the pipeline samples with. Raises ValueError for noise that it cannot work with."""
        return made(DDIMScheduler, "noise", SAMPLING | self.noise)

    def sha256(self, *parts: str) -> str:
        """Identifies what the ``parts`` of the model (all, when none is named) depend on."""
        text = self.model_dump_json(include=set(parts) or None, exclude=None if parts else {"judges"})
        return hashlib.sha256(text.encode()).hexdigest()

    def shorter(self) -> set[str]:
        """Hashes of this recipe without its last cycles: what they have left is gone on with."""
        return {self.model_copy(update={"training": training}).sha256() for training in self.training.shorter()}


def is_text_recipe(name: str) -> bool:
    """Whether this recipe is of a text-to-image model."""
    try:
        return "text_encoder" in read_toml("recipe", name, RECIPES)
    except VduError:
        return False


def read_text_recipe(name: str) -> TextRecipe:
    """A shipped recipe by name or a TOML file by path. Raises `VduError` for unknown names and settings."""
    return checked("recipe", name, TextRecipe, read_toml("recipe", name, RECIPES))
