"""The random batch that every term of the objective draws: x_0, times, noise, ``x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vdu.backbone import Backbone

__all__ = ["Clean", "Noised", "draw", "noised"]


@dataclass(frozen=True)
class Clean:
    """``x_0`` ``(N, *latent_shape)`` and ``c`` ``(N,)``, the numbers of its prompts; None: unconditional."""

    x_0: Tensor
    c: Tensor | None = None

    @staticmethod
    def of(images: Clean | Tensor) -> Clean:
        """A bare tensor is unconditional."""
        return images if isinstance(images, Clean) else Clean(images)

    def __len__(self) -> int:
        return len(self.x_0)

    def __getitem__(self, index: Tensor | slice) -> Clean:
        return Clean(self.x_0[index], None if self.c is None else self.c[index])

    def split(self, size: int) -> list[Clean]:
        """Parts of at most ``size``, in order."""
        return [self[first : first + size] for first in range(0, len(self), size)]

    def repeat(self, times: int) -> Clean:
        """Everything ``times`` times over."""
        c = None if self.c is None else self.c.repeat(times)
        return Clean(self.x_0.repeat(times, *(1,) * (self.x_0.ndim - 1)), c)


@dataclass(frozen=True)
class Noised:
    """``x_t`` and ``eps`` of shape ``(B, *latent_shape)``, times ``t`` ``(B,)``, conditions ``c`` ``(B,)`` or None."""

    x_t: Tensor
    eps: Tensor
    t: Tensor
    c: Tensor | None = None


def draw(backbone: Backbone, images: Clean | Tensor, batch_size: int, g: torch.Generator, until: float = 1.0) -> Noised:
    """``batch_size`` of ``images`` (with replacement) as of `noised`."""
    return noised(backbone, Clean.of(images)[torch.randint(len(images), (batch_size,), generator=g)], g, until)


def noised(backbone: Backbone, images: Clean | Tensor, g: torch.Generator, until: float = 1.0) -> Noised:
    """Every one of ``images`` at its own uniform time in 0 … ``until`` · T, on the frozen network's device."""
    clean, device = Clean.of(images), backbone.device
    t = torch.randint(max(1, round(until * backbone.timesteps)), (len(clean),), generator=g)
    eps = torch.randn(clean.x_0.shape, generator=g)
    x_0, t, eps = clean.x_0.to(device), t.to(device), eps.to(device)
    return Noised(backbone.add_noise(x_0, eps, t), eps, t, None if clean.c is None else clean.c.to(device))
