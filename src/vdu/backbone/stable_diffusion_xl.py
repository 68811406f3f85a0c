"""Stable Diffusion XL: `StableDiffusionXLPipeline`, two text encoders and the picture's size as conditions.

    c = ([h_1, h_2], p_2, (H, W, 0, 0, H, W))     h: penultimate hidden states, p_2: the second encoder's pooled text
    ∅ = the same with h = p = 0 where the pipeline has ``force_zeros_for_empty_prompt``, else the encoded empty text

Podell et al., arXiv 2307.01952: original size, crop and target size are those of uncropped pictures at the model's
own size. The empty prompt (number 0 of ``c``) is ∅, which the network was trained at where there was no text and
which the pipeline guides away from. The VAE overflows in float16; the base class holds a float32 copy of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from vdu.backbone.stable_diffusion import StableDiffusionBackbone
from vdu.errors import VduError

__all__ = ["StableDiffusionXLBackbone"]


class StableDiffusionXLBackbone(StableDiffusionBackbone):
    """As Stable Diffusion 1.x, with what the module's formula adds."""

    family: ClassVar[str] = "Stable Diffusion XL base model"
    text_parts: ClassVar[tuple[tuple[str, str], ...]] = (
        ("tokenizer", "text_encoder"),
        ("tokenizer_2", "text_encoder_2"),
    )
    beyond_text: ClassVar[tuple[str, ...]] = tuple(
        name for name in StableDiffusionBackbone.beyond_text if name != "addition_embed_type"
    )

    @classmethod
    def check(cls, pipeline: Any) -> None:
        """Refuses refiners, other added conditions, and what Stable Diffusion 1.x is refused for."""
        if pipeline.text_encoder is None and pipeline.text_encoder_2 is not None:
            raise VduError("an SDXL refiner is not supported: give the base model, which makes what it refines")
        super().check(pipeline)
        config = pipeline.unet.config
        if config.addition_embed_type != "text_time":
            raise VduError(
                f"a U-Net with added conditions {config.addition_embed_type!r} is not one of SDXL: text_time"
            )
        width = 6 * config.addition_time_embed_dim + pipeline.text_encoder_2.config.projection_dim
        if config.projection_class_embeddings_input_dim != width:
            said = f"{config.projection_class_embeddings_input_dim} wide, sizes and pooled text are {width}"
            raise VduError(f"the U-Net's added conditions are {said}: refiners and other families are not supported")

    def _encoding(self, texts: list[str]) -> tuple[Tensor, ...]:
        empty = torch.tensor([not text for text in texts], device=self.device)
        guided = bool(empty.any())
        encoded = self.pipeline.encode_prompt(texts, device=self.device, do_classifier_free_guidance=guided)
        words, no_words, pooled, no_pooled = encoded
        if not guided:
            return words, pooled
        return torch.where(empty[:, None, None], no_words, words), torch.where(empty[:, None], no_pooled, pooled)

    def states_of(self, texts: Sequence[str]) -> Tensor:
        """As for Stable Diffusion 1.x: the empty text is read too, so that it is not ∅ here."""
        states, empty = super().states_of(texts), torch.tensor([not text for text in texts])
        if not empty.any():
            return states
        return torch.where(empty.to(states.device)[:, None, None], self._states_of_empty_text.to(states), states)

    @cached_property
    @torch.no_grad()
    def _states_of_empty_text(self) -> Tensor:
        with self.placed_text():
            states, *_ = self.pipeline.encode_prompt([""], device=self.device, do_classifier_free_guidance=False)
        return cast(Tensor, states)

    def _asked(self, encodings: tuple[Tensor, ...]) -> dict[str, Any]:
        words, pooled = encodings
        _, height, width = self.shape
        sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=words.dtype, device=words.device)
        added = {"text_embeds": pooled, "time_ids": sizes.expand(len(words), -1)}
        return {"encoder_hidden_states": words, "added_cond_kwargs": added}

    def _options(self) -> dict[str, Any]:
        zeros = self.pipeline.config.get("force_zeros_for_empty_prompt", True)
        return {"force_zeros_for_empty_prompt": zeros, "add_watermarker": self.pipeline.watermark is not None}
