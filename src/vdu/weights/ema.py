"""Exponential moving average of weights: ``θ̄ ← d θ̄ + (1 − d) θ``, with ``d = min(decay, (1 + step) / (10 + step))``."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["ema_update"]


@torch.no_grad()
def ema_update(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move ``average`` towards ``model`` in place. The ramp keeps early steps from being dominated by the start."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    for target, source in zip(average.parameters(), model.parameters(), strict=True):
        if target is not source:  # what is frozen is shared
            target.data.lerp_(source, weight)
    for kept, current in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(current)
