"""The Bayes target: the exact score of what should remain, as one bounded regression that fills both slots.

What the model makes is a mixture ``p = (1 − π) p_r + π p_f``. With ``ρ = π p_f(x_t) / p(x_t)`` the score
of the retained part is

    f_r(x_t) = (f_* − ρ f_f) / (1 − ρ) = f_* + ρ/(1 − ρ) (f_* − f_f)

    plasticity A = E_{x ~ D_f} (1 − ρ) ‖f_θ − f_r‖²     stability B = E_{x ~ own samples} (1 − ρ) ‖f_θ − f_r‖²

Up to a constant, B is the loss of retraining without D_f: ``E_{p_r} ‖f_θ − y‖² = E_{p_r} ‖f_θ − f_r‖² + const`` and
``p_r = p (1 − ρ) / (1 − π)``. Without that weight the points that only D_f reaches (ρ → ρ_max, a target ρ/(1 − ρ) times
as far) rule the gradient, and the network learns a shift for every picture instead of one for the undesired ones.
Where ρ ≈ 0 this is self-distillation, where ρ → 1 strong guidance. ``f`` is the network's own output (ε, v or x_0): the
formula is affine with coefficients that sum to one, so it is the same in each. Follows from Bayes' rule and the
variational objective of Panda et al., arXiv 2510.04058, taken in function space.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vdu.backbone import Backbone
from vdu.discriminator import Discriminator
from vdu.noising import Clean, draw

__all__ = ["BayesTarget", "retained_output"]


def retained_output(original: Tensor, undesired: Tensor, rho: Tensor) -> Tensor:
    """``f_r`` of shape ``(B, C, H, W)`` from ``f_*``, ``f_f`` and ``rho`` ``(B,)`` in [0, 1)."""
    odds = (rho / (1 - rho)).view(-1, 1, 1, 1)
    return original + odds * (original - undesired)


class BayesTarget:
    """Regression of the network on ``f_r`` at noised ``images`` (forget images, or the original's own samples)."""

    def __init__(
        self,
        backbone: Backbone,
        images: Clean | Tensor,
        forget_score: nn.Module,
        discriminator: Discriminator,
        share: float,
        rho_max: float,
    ) -> None:
        self.backbone, self.images = backbone, images
        self.forget_score, self.discriminator = forget_score, discriminator
        self.share, self.rho_max = share, rho_max

    def target(self, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``f_r(x_t, t)``, shape ``(B, C, H, W)``, and ``ρ`` ``(B,)``."""
        original, features = self.backbone.original_with_features(x_t, t, c)
        rho = (self.share * self.discriminator(features, t / self.backbone.timesteps).exp()).clamp(max=self.rho_max)
        with torch.no_grad():
            undesired = self.backbone.output(self.forget_score, x_t, t, c)
        return retained_output(original, undesired, rho), rho

    def __call__(self, network: nn.Module, batch_size: int, g: torch.Generator) -> Tensor:
        """The squared error, weighted by 1 − ρ, on a random batch; a scalar."""
        noised = draw(self.backbone, self.images, batch_size, g)
        target, rho = self.target(noised.x_t, noised.t, noised.c)
        error = (self.backbone.output(network, noised.x_t, noised.t, noised.c) - target).pow(2).mean(dim=(1, 2, 3))
        return ((1 - rho) * error).mean()
