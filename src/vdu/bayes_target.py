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

With prompts c the same guidance moves every prompt's own output,

    f_r(x_t, c) = f_*(x_t, c) + ρ/(1 − ρ) (f_*(x_t, ∅) − f_f(x_t, ∅)),   ρ = π p_f(x_t) / p(x_t) of what is made unasked

since ``p_r(x | c) ∝ p(x | c) P(retained | x)`` and ``∇ log(1 − ρ)`` is that term. Were both scores taken at c, a prompt
that makes nothing else than the undesired would have no direction left: there ``f_f = f_*``.

``strength`` multiplies the odds ρ/(1 − ρ): 1 is Bayes' rule, more forgets more. Targets are computed once, on the bank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vdu.backbone import Backbone
from vdu.discriminator import Discriminator
from vdu.noised_bank import NoisedBank, network_batches
from vdu.precision import autocast

__all__ = ["BayesTarget", "retained_output"]

SMALLEST_RHO = 0.005


def retained_output(original: Tensor, unprompted: Tensor, undesired: Tensor, rho: Tensor) -> Tensor:
    """``f_r`` ``(B, C, H, W)`` from ``f_*`` with and without prompt, ``f_f``, and ``rho`` ``(B,)`` in [0, 1)."""
    odds = (rho / (1 - rho)).view(-1, 1, 1, 1)
    return original + odds * (unprompted - undesired)


class BayesTarget:
    """Regression of the network on ``f_r`` at the items of a ``bank``: forget images, or own samples."""

    def __init__(
        self,
        backbone: Backbone,
        bank: NoisedBank,
        discriminator: Discriminator,
        forget_score: nn.Module,
        *,
        strength: float = 1.0,
        rho_max: float = 0.9,
        precision: str = "fp32",
    ) -> None:
        self.backbone, self.bank, self.precision = backbone, bank, precision
        odds = strength * discriminator(bank.features, bank.t_share).exp()
        self.rho = (odds / (1 + odds)).nan_to_num(nan=1.0).clamp(max=rho_max)
        self.target = bank.original.clone()
        self._guide(forget_score)

    @torch.no_grad()
    def _guide(self, forget_score: nn.Module) -> None:
        """Move the target where ρ counts; elsewhere it is the original's output."""
        counts = (self.rho > SMALLEST_RHO).nonzero().flatten()
        for i in network_batches(self.backbone, counts):
            with autocast(forget_score, self.precision):
                undesired = self.backbone.output(forget_score, self.bank.x_t[i], self.bank.t[i])
            original, unprompted = self.bank.original[i].float(), self.bank.unprompted[i].float()
            self.target[i] = retained_output(original, unprompted, undesired, self.rho[i]).half()

    def __call__(self, network: nn.Module, batch_size: int, g: torch.Generator) -> Tensor:
        """The squared error, weighted by 1 − ρ, on random items; a scalar."""
        i = torch.randint(len(self.rho), (batch_size,), generator=g).to(self.rho.device)
        output = self.backbone.output(network, self.bank.x_t[i], self.bank.t[i], self.bank.condition(i))
        error = (output - self.target[i].float()).pow(2).mean(dim=(1, 2, 3))
        return ((1 - self.rho[i]) * error).mean()
