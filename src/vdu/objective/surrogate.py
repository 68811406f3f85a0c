"""Surrogate targets: at noised forget images the network is taught something else than what they are.

    another image   A = E_{x ~ D_f, u, t, ε} ᾱ_t ‖x̂_0 − u‖² = E (1 − ᾱ_t) ‖ε_θ(x_t, t) − (x_t − √ᾱ_t u)/√(1 − ᾱ_t)‖²
    another noise   A = E_{x ~ D_f, t, ε, ε'} ‖ε_θ(x_t, t) − ε'‖²,   ε' ~ U[0, 1)

``u`` is a random clean image that has nothing to do with ``x``: what a denoiser is labelled with is its clean image, so
this is random labelling without labels. Both are bounded regressions; the factor ᾱ_t keeps the first one from being
ruled by small t, where the ε that leads from ``u`` to ``x_t`` is a hundred times as large as noise. The targets follow
Heng & Soh, arXiv 2305.10120 (u ~ U[−1, 1]), Fan et al., arXiv 2310.12508 (u of another class), and Wu et al.,
arXiv 2401.05779 (another noise).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vdu.backbone import Backbone
from vdu.diffusion.noising import Clean, draw

__all__ = ["AnotherImage", "AnotherNoise", "one_of", "uniform_images"]

ImageSource = Callable[[tuple[int, ...], torch.Generator], Tensor]


def uniform_images(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    """``u ~ U[−1, 1]`` in every pixel, shape ``(B, C, H, W)``."""
    return torch.rand(shape, generator=g) * 2 - 1


def one_of(images: Clean | Tensor) -> ImageSource:
    """A source of random ``images``."""
    x_0 = Clean.of(images).x_0
    return lambda shape, g: x_0[torch.randint(len(x_0), shape[:1], generator=g)]


class AnotherImage:
    """Teach at noised forget images the clean images of ``source``."""

    def __init__(self, backbone: Backbone, forget: Clean | Tensor, source: ImageSource) -> None:
        self.backbone, self.forget, self.source = backbone, forget, source

    def __call__(self, network: nn.Module, batch_size: int, g: torch.Generator) -> Tensor:
        """A on a random batch; a scalar."""
        noised = draw(self.backbone, self.forget, batch_size, g)
        u = self.source(tuple(noised.x_t.shape), g).to(noised.x_t.device)
        error = self.backbone.predict_eps(network, noised.x_t, noised.t, noised.c) - self.backbone.noise_from(
            noised.x_t, u, noised.t
        )
        noise_power = 1 - self.backbone.alpha_bar.to(noised.t.device)[noised.t]
        return (noise_power * error.pow(2).mean(dim=(1, 2, 3))).mean()


class AnotherNoise:
    """Teach at noised forget images a noise that was never added: uniform in [0, 1), so not centred."""

    def __init__(self, backbone: Backbone, forget: Clean | Tensor) -> None:
        self.backbone, self.forget = backbone, forget

    def __call__(self, network: nn.Module, batch_size: int, g: torch.Generator) -> Tensor:
        """A on a random batch; a scalar."""
        noised = draw(self.backbone, self.forget, batch_size, g)
        other = torch.rand(noised.x_t.shape, generator=g).to(noised.x_t.device)
        return (self.backbone.predict_eps(network, noised.x_t, noised.t, noised.c) - other).pow(2).mean()
