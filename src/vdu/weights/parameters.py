"""Which parameters are trained: a glob over their names, a part that has a name, all but this part, or a LoRA."""

from __future__ import annotations

import fnmatch

from torch import nn

from vdu.backbone import Backbone
from vdu.backbone.low_rank import add_adapters
from vdu.errors import VduError

__all__ = ["LORA", "PARTS", "chosen_names", "trained_copy"]

# attn2 is diffusers' name of the attention between picture and text in a transformer block.
PARTS = {"cross-attention": "*.attn2.*"}
NOT = "not-"
LORA = "lora"


def chosen_names(network: nn.Module, pattern: str) -> set[str]:
    """The parameters that ``pattern`` matches: a glob, one of `PARTS`, or ``not-`` such a part for all others.

    Raises `VduError` where that is nothing.
    """
    names = [name for name, _ in network.named_parameters()]
    part = PARTS.get(pattern.removeprefix(NOT))
    chosen = set(fnmatch.filter(names, part or pattern))
    if part and pattern.startswith(NOT):
        chosen = set(names) - chosen
    if not chosen:
        raise VduError(f"no parameter matches {pattern!r}: names look like {names[0]!r}")
    return chosen


def trained_copy(
    backbone: Backbone, parameters: str, lora_rank: int, seed: int, gradient_checkpointing: bool = False
) -> nn.Module:
    """The copy that a run trains, in which gradients reach only ``parameters``; the rest is the original's own."""
    if parameters != LORA:
        return backbone.trainable_copy(gradient_checkpointing, chosen_names(backbone.network, parameters))
    network = backbone.trainable_copy(gradient_checkpointing, ())
    add_adapters(network, lora_rank, seed)
    return network
