"""Which parameters are trained: a glob over their names, or the name of a part that many ask for."""

from __future__ import annotations

import fnmatch

from torch import nn

from vdu.errors import VduError

__all__ = ["PARTS", "choose_parameters"]

# attn2 is diffusers' name of the attention between picture and text in a transformer block.
PARTS = {"cross-attention": "*.attn2.*"}


def choose_parameters(network: nn.Module, pattern: str) -> None:
    """Let gradients reach only what ``pattern`` matches. Raises `VduError` where that is nothing."""
    chosen = 0
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(fnmatch.fnmatch(name, PARTS.get(pattern, pattern)))
        chosen += parameter.requires_grad
    if not chosen:
        first = next(name for name, _ in network.named_parameters())
        raise VduError(f"no parameter matches {pattern!r}: names look like {first!r}")
