"""Trained weights in the precision of the user's model, rounded up or down at random so that changes stay on average.

    P(w → next grid point towards w) = |w − nearest(w)| / spacing

Gupta et al., arXiv 1502.02551 (stochastic rounding). The original's weights lie on the grid of its own precision, and a
run moves most of them by less than half of a step: rounded to the nearest, much of what was unlearned would be undone.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["rounded"]


def rounded(weights: Tensor, dtype: torch.dtype, g: torch.Generator) -> Tensor:
    """``weights`` on the CPU as ``dtype``; those that it can hold stay as they are."""
    nearest = weights.to(dtype)
    if not weights.is_floating_point() or dtype.itemsize >= weights.element_size():
        return nearest
    error = weights - nearest.to(weights.dtype)
    towards = torch.nextafter(nearest, torch.copysign(torch.tensor(torch.inf), error).to(dtype))
    spacing = (towards.to(weights.dtype) - nearest.to(weights.dtype)).abs()
    drawn = torch.empty_like(weights).copy_(torch.rand(weights.shape, generator=g))  # in the weights' memory format
    return torch.where(drawn * spacing < error.abs(), towards, nearest)
