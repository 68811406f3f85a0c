"""Redirection: at noised forget images, denoise towards the nearest images that are to be kept.

    A = E_{x ~ D_f, t, ε} Σ_k w_k ‖ε_θ(x_t, t) − e_k‖²,   e_k = (x_t − √ᾱ_t x_k)/√(1 − ᾱ_t),   w = softmax_k(−½‖e_k‖²)

``x_k`` are the K images of D_r nearest to ``x`` in pixels, ``w_k`` their posterior probability of having made ``x_t``
(so its norm is a sum over dimensions, the loss's a mean): the score of D_r at ``x_t``, of which only the terms that
matter are kept. Shi et al., arXiv 2509.13007.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vdu.backbone import Backbone
from vdu.diffusion.noising import Clean, noised

__all__ = ["Redirection", "nearest_images"]


def nearest_images(images: Tensor, kept: Tensor, count: int) -> Tensor:
    """Indices ``(N, K)`` into ``kept`` of the nearest to each of ``images``, ``K = min(count, len(kept))``."""
    distance = torch.cdist(images.flatten(1), kept.flatten(1))
    return distance.topk(min(count, len(kept)), largest=False).indices


class Redirection:
    """Regression at noised ``forget`` images on the ``neighbours`` nearest images of ``retain``."""

    def __init__(self, backbone: Backbone, forget: Clean | Tensor, retain: Clean | Tensor, neighbours: int) -> None:
        self.backbone, self.forget, self.retain = backbone, Clean.of(forget), Clean.of(retain).x_0
        self.nearest = nearest_images(self.forget.x_0, self.retain, neighbours)

    def __call__(self, network: nn.Module, batch_size: int, g: torch.Generator) -> Tensor:
        """A on a random batch; a scalar."""
        index = torch.randint(len(self.forget), (batch_size,), generator=g)
        batch = noised(self.backbone, self.forget[index], g)
        near = self.retain[self.nearest[index]].to(batch.x_t.device)
        ways = torch.stack([self.backbone.noise_from(batch.x_t, x_k, batch.t) for x_k in near.unbind(1)], dim=1)
        weight = (-0.5 * ways.pow(2).sum(dim=(2, 3, 4))).softmax(dim=1)
        eps = self.backbone.predict_eps(network, batch.x_t, batch.t, batch.c).unsqueeze(1)
        return (weight * (eps - ways).pow(2).mean(dim=(2, 3, 4))).sum(dim=1).mean()
