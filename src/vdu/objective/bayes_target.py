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

‖·‖² is in v, whatever the network predicts: Δv² = Δε²/ᾱ = Δx_0²/(1 − ᾱ) at equal x_t, up to a largest weight, over the
mean of all times. In ε alone little is learned from high noise, where it is decided what the picture will be of. And
what wide areas share counts more (`vdu.diffusion.multi_scale`): there such an error stands far out of the noise of
their mean.

With prompts c: ``p_r(x | c) ∝ p(x | c) P(retained | x)``, and where what is drawn does not depend on the prompt once
it is known to be undesired or not,

    f_r(x_t, c) = f_*(x_t, c) + ρ(x_t, c) d(x_t),   d = f_r(x_t, ∅) − f_f(x_t, ∅) = (f_* − f_f)(x_t, ∅) / (1 − ρ(x_t))

d leads from the undesired to the rest, seen in what the model makes unasked; ρ(x_t, c) says how much of it a prompt
needs. Were d taken at c, a prompt that makes nothing but the undesired would have no direction left: there f_f = f_*.
The weight is (1 − ρ(x_t, c)) over its mean for the prompt: p_r(x | c) has mass one for each c, also for those. So the
errors of d weigh fully there, and the factor 1/(1 − ρ(x_t)) is bounded more tightly, by ``prompted_rho_max``; at the
empty prompt too, which guidance takes from what a prompt says.

``strength`` multiplies the odds ρ/(1 − ρ): 1 is Bayes' rule, more forgets more. Targets are computed once, on the bank.

Heads, and a network fitted on a few images, know of ρ and of f_* − f_f only where little noise leaves few of the
model's own samples possible. Where `MANY` are (of 512 digits from t/T ≈ 0.6 on), ρ and the difference f_r − f_* are
those of the own samples (`vdu.preparation.retained_samples`), without a strength: heads see nothing there, their ρ is π
for all, and a factor on it pushes every picture the same way, along a difference that is mostly what the fitting left.
Photographs without airplanes, which are bright, all turned dark. The forget score is fitted, and asked, at lower noise
than all but `TOO_FEW` of the items that would ask it: what fitting leaves at more noise moves every picture alike.

Elsewhere ρ is bounded by ``rho_max``. Where ρ(x_t), with its strength, reaches that, f_* is much like f_f and their
difference no way out: the score of the own samples that should remain is the target. Their image is another one
however little noise there is, so an error counts there as one of x_0 from SNR = 2 on: without that bound the least
noised pictures, at which a sample is long decided, would rule the gradient. Both for models without text, as own
samples know nothing of a prompt.

Where the bank says what a network in training is ``asked`` with, c above is the prompt without the words that ask for
the undesired, and the network learns to say the same with them (`vdu.text.asking`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from vdu.backbone import Backbone
from vdu.diffusion.multi_scale import multi_scale_error
from vdu.diffusion.noised_bank import NoisedBank, network_batches
from vdu.diffusion.training_loss import min_snr_weight
from vdu.precision import autocast
from vdu.preparation.discriminator import Discriminator
from vdu.preparation.retained_samples import RetainedSamples

__all__ = ["BayesTarget", "guided_until", "retained_output", "velocity_weight"]

SMALLEST_RHO = 0.005
MANY = 8
TOO_FEW = 0.01
LARGEST_REDIRECTED_SNR = 2.0
LARGEST_VELOCITY_WEIGHT = 20.0  # before it is divided by the mean: 1/ᾱ has no bound where nothing but noise is left


def velocity_weight(alpha_bar: Tensor, prediction_type: str, largest_snr: float | None = None) -> Tensor:
    """What a squared error of the network's output counts as one of v at each time ``(T,)``; mean 1.

    From ``largest_snr`` on, where it is given, as one of x_0, v² min(SNR, largest_snr) / SNR; the mean is that without.
    """
    inverse = {"epsilon": 1 / alpha_bar, "sample": 1 / (1 - alpha_bar), "v_prediction": torch.ones_like(alpha_bar)}
    weight = inverse[prediction_type]
    mean = weight.clamp(max=LARGEST_VELOCITY_WEIGHT).mean()
    if largest_snr is not None:
        weight = weight * min_snr_weight(alpha_bar, largest_snr)
    return weight.clamp(max=LARGEST_VELOCITY_WEIGHT) / mean


def retained_output(
    original: Tensor, unprompted: Tensor, undesired: Tensor, rho: Tensor, unprompted_rho: Tensor
) -> Tensor:
    """``f_r`` ``(B, C, H, W)`` from ``f_*`` with and without prompt, ``f_f``, and both ρ ``(B,)`` in [0, 1)."""
    share = (rho / (1 - unprompted_rho)).view(-1, 1, 1, 1)
    return original + share * (unprompted - undesired)


class BayesTarget:
    """Regression of the network on ``f_r`` at the items of a ``bank``: forget images, or own samples.

    Until `guide` is given the forget score, the target is the original's output where that is needed.
    """

    def __init__(
        self,
        backbone: Backbone,
        bank: NoisedBank,
        discriminator: Discriminator,
        prompted: Discriminator | None,
        *,
        strength: float = 1.0,
        rho_max: float = 0.9,
        prompted_rho_max: float = 0.6,
        retained: RetainedSamples | None = None,
    ) -> None:
        self.backbone, self.bank = backbone, bank
        alpha_bar = backbone.alpha_bar.to(bank.t.device)[bank.t]
        self._sigma = ((1 - alpha_bar) / alpha_bar).sqrt()

        def rho(head: Discriminator, features: Tensor) -> Tensor:
            odds = strength * head(features, bank.t_share).exp()
            return (odds / (1 + odds)).nan_to_num(nan=1.0).clamp(max=rho_max)

        self.target = bank.original.clone()
        self.rho = rho(discriminator, bank.features)
        redirected = by_own = torch.zeros_like(self.rho, dtype=torch.bool)
        if retained is not None:
            at_bound = self.rho >= rho_max  # of the heads' ρ, which own samples replace
            by_own = self._guided_by_own(retained, rho_max)
            redirected = at_bound & ~by_own
        self.unprompted_rho = self.rho
        if bank.c is not None:
            if prompted is not None:
                self.rho = torch.where(bank.c > 0, rho(prompted, bank.prompted_features), self.rho)
            self.unprompted_rho = self.unprompted_rho.clamp(max=prompted_rho_max)
        of_time = torch.where(redirected, self._time_weight(LARGEST_REDIRECTED_SNR), self._time_weight())
        self.weight = _weight(self.rho, bank.c) * of_time
        self._to_guide = ~redirected & ~by_own & (self.rho > SMALLEST_RHO)
        if retained is not None:
            self._aim(redirected, lambda i: retained.output(bank.x_t[i], bank.t[i]))

    def _time_weight(self, largest_snr: float | None = None) -> Tensor:
        weight = velocity_weight(self.backbone.alpha_bar, self.backbone.prediction_type, largest_snr)
        return weight.to(self.bank.t.device)[self.bank.t]

    @torch.no_grad()
    def _aim(self, where: Tensor, target_of: Callable[[Tensor], Tensor]) -> None:
        """Set the target at the items ``where``, which elsewhere is the original's output."""
        for i in network_batches(self.backbone, where.nonzero().flatten()):
            self.target[i] = target_of(i).half()

    @property
    def guided_times(self) -> Tensor:
        """The t / T of the items at which `guide` asks the forget score."""
        return self.bank.t_share[self._to_guide]

    def guide(self, forget_score: nn.Module, until: float = 1.0, precision: str = "fp32") -> Self:
        """Set the target where networks say it, at t / T < ``until``: the heads' ρ, and ``forget_score`` as f_f."""

        def guided(i: Tensor) -> Tensor:
            with autocast(forget_score, precision):
                undesired = self.backbone.output(forget_score, self.bank.x_t[i], self.bank.t[i])
            original, unprompted = self.bank.original[i].float(), self.bank.unprompted[i].float()
            return retained_output(original, unprompted, undesired, self.rho[i], self.unprompted_rho[i])

        self._aim(self._to_guide & (self.bank.t_share < until), guided)
        return self

    def _guided_by_own(self, retained: RetainedSamples, rho_max: float) -> Tensor:
        """Set ρ and the target where many own samples are possible; returns where that is ``(K·N,)``."""
        by_own = torch.zeros_like(self.rho, dtype=torch.bool)
        for i in network_batches(self.backbone, torch.arange(len(self.rho))):
            possible, rho, way = retained.guidance(self.bank.x_t[i], self.bank.t[i])
            many = possible >= MANY
            here, by_own[i] = i.to(many.device)[many], many
            self.rho[here] = rho[many].clamp(max=rho_max)
            self.target[here] = (self.target[here].float() + way[many]).half()
        return by_own

    def __call__(self, network: nn.Module, batch_size: int, g: torch.Generator) -> Tensor:
        """The weighted squared error on random items; a scalar."""
        i = torch.randint(len(self.rho), (batch_size,), generator=g).to(self.rho.device)
        output = self.backbone.output(network, self.bank.x_t[i], self.bank.t[i], self.bank.condition(i))
        error = multi_scale_error(output - self.target[i].float(), self._sigma[i])
        return (self.weight[i] * error).mean()


def guided_until(*times: Tensor) -> float:
    """The t / T, in twentieths, below all but `TOO_FEW` of the ``times`` (t / T) at which the forget score is asked."""
    earliest_first = torch.cat(times).sort().values
    if not len(earliest_first):
        return 0.0
    latest = float(earliest_first[math.ceil((1 - TOO_FEW) * len(earliest_first)) - 1])
    return min(20, math.floor(20 * latest) + 1) / 20


def _weight(rho: Tensor, c: Tensor | None) -> Tensor:
    """1 − ρ; of a prompt's items over its mean for the prompt."""
    weight = 1 - rho
    if c is None or not c.any():
        return weight
    prompts = int(c.max()) + 1
    total = torch.zeros(prompts, device=c.device).index_add_(0, c, weight)
    count = torch.zeros(prompts, device=c.device).index_add_(0, c, torch.ones_like(weight))
    return torch.where(c > 0, weight / (total / count.clamp(min=1))[c], weight)
