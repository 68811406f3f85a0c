"""Random changes to a batch ``(B, C, H, W)`` that leave the class of every image as it is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["mirrored", "moved_each", "moved_together"]


def mirrored(images: Tensor, g: torch.Generator) -> Tensor:
    """Each image flipped left to right with probability ½."""
    chosen = torch.rand(len(images), generator=g) < 0.5
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


def moved_together(images: Tensor, g: torch.Generator) -> Tensor:
    """The whole batch moved by up to two pixels, round the edge: enough for digits on an empty ground."""
    down, right = (int(v) for v in torch.randint(-2, 3, (2,), generator=g))
    return torch.roll(images, (down, right), dims=(2, 3))


def moved_each(images: Tensor, g: torch.Generator, most: int = 4) -> Tensor:
    """Each image moved by up to ``most`` pixels of its own; what comes in is the reflection at the edge."""
    count, _, height, width = images.shape
    down, right = torch.randint(0, 2 * most + 1, (2, count), generator=g)
    rows = (down[:, None] + torch.arange(height))[:, :, None]
    columns = (right[:, None] + torch.arange(width))[:, None, :]
    padded = pad(images, (most, most, most, most), mode="reflect").permute(0, 2, 3, 1)
    return padded[torch.arange(count)[:, None, None], rows, columns].permute(0, 3, 1, 2).contiguous()
