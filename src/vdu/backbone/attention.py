"""Attention written out, softmax(Q Kᵀ / √d) V in three products, where torch's fused one is slower."""

from __future__ import annotations

from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor

__all__ = ["write_out_attention"]

FEW_POSITIONS = 256


def write_out_attention(network: UNet2DConditionModel, height: int, width: int) -> None:
    """Have ``network`` write its attention out where ``x_t`` has few positions.

    There torch's fused attention takes twice as long backwards on a CPU.
    """
    if height * width <= FEW_POSITIONS:
        network.set_attn_processor(AttnProcessor())
