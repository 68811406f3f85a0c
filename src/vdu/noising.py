"""The random batch that every term of the objective draws: images, times, noise, ``x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vdu.backbone import Backbone

__all__ = ["Noised", "draw", "noised"]


@dataclass(frozen=True)
class Noised:
    """``x_t`` and ``eps`` of shape ``(B, C, H, W)``, times ``t`` ``(B,)``."""

    x_t: Tensor
    eps: Tensor
    t: Tensor


def draw(backbone: Backbone, images: Tensor, batch_size: int, g: torch.Generator) -> Noised:
    """``batch_size`` of ``images`` (with replacement) at uniform times, on the frozen network's device."""
    return noised(backbone, images[torch.randint(len(images), (batch_size,), generator=g)], g)


def noised(backbone: Backbone, x_0: Tensor, g: torch.Generator) -> Noised:
    """Every one of ``x_0`` ``(B, C, H, W)`` at its own uniform time, on the frozen network's device."""
    t = torch.randint(backbone.timesteps, (len(x_0),), generator=g)
    eps = torch.randn(x_0.shape, generator=g)
    device = next(backbone.network.parameters()).device
    x_0, t, eps = x_0.to(device), t.to(device), eps.to(device)
    return Noised(backbone.add_noise(x_0, eps, t), eps, t)
