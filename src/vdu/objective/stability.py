"""Stability regulariser B: stay close to the pre-trained model.

    weights   B = (1/P) Σ_i (θ_i − μ*_i)² / (2σ*_i²)      the Gaussian KL with σ fixed to σ*, P parameters,
                                                          so B = ½ when every parameter is one posterior sd away
    outputs   B = E_{x ~ own samples, t, ε} ‖f_θ(x_t, t) − f_*(x_t, t)‖²      self-distillation (mean over dimensions)

`weights` can be taken in two ways. *Explicit*, the paper's: γ∇B joins (1 − γ)∇A before the optimiser. *Proximal*: after
the optimiser's step, the exact minimiser of its quadratic

    θ ← (θ + λ_i μ*_i) / (1 + λ_i),   λ_i = η γ/(1 − γ) · σ̄/σ*_i²,   σ̄ = median sd

so that no γ is unstable, and γ = ½ holds a parameter that Adam pushes by η every step about one sd (Δ = σ*²/σ̄) away.
Panda et al., arXiv 2510.04058; the proximal form follows the argument for decoupled weight decay (arXiv 1711.05101).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor, nn

from vdu.backbone import Backbone
from vdu.diffusion.denoising import regression_error
from vdu.diffusion.noising import Clean, draw
from vdu.posterior import MEDIAN_OF, Posterior

__all__ = ["OutputStability", "WeightStability"]


class WeightStability:
    """Gaussian KL to the posterior for the parameters of ``network`` that require gradients.

    The anchor is the posterior's mean where it names one, else the frozen ``original``, or a copy of ``network`` as it
    now is. Neither the original nor the variances are copied, which stay in the posterior's precision (bfloat16 takes
    half), and temporaries are of one tensor's size.
    """

    def __init__(self, network: nn.Module, posterior: Posterior, original: nn.Module | None = None) -> None:
        named = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
        self.parameters: list[Tensor] = [p for _, p in named]
        frozen = dict(original.named_parameters()) if original else {n: p.detach().clone() for n, p in named}
        anchors = posterior.mean or {n: frozen[n].detach() for n, _ in named}
        self.mean = [anchors[n].to(p.device, torch.float32) for n, p in named]
        self.variance = [posterior.variance[n].to(p.device) for n, p in named]
        self.count = sum(p.numel() for p in self.parameters)

    @cached_property
    def typical_sd(self) -> float:
        """The median σ*, of every so manieth weight of a large network."""
        every = math.ceil(self.count / MEDIAN_OF)
        return float(torch.cat([v.flatten()[::every] for v in self.variance]).median()) ** 0.5

    def _triples(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """θ, μ* and 1/σ*² of each tensor."""
        for parameter, mean, variance in zip(self.parameters, self.mean, self.variance, strict=True):
            yield parameter, mean, 1 / variance.float()

    @torch.no_grad()
    def value(self) -> float:
        """B, for the log."""
        return sum(float(((t - m) ** 2 * p).sum()) for t, m, p in self._triples()) / (2 * self.count)

    @torch.no_grad()
    def add_gradient(self, weight: float) -> None:
        """Add ``weight`` ∇B to the parameters' gradients in closed form, without a graph."""
        for parameter, mean, precision in self._triples():
            if parameter.grad is not None:
                parameter.grad.addcmul_(parameter - mean, precision, value=weight / self.count)

    @torch.no_grad()
    def proximal_step(self, learning_rate: float, gamma: float) -> None:
        """The exact proximal step in place. At γ = 1 the parameters return to the anchor."""
        if gamma >= 1:
            torch._foreach_copy_(self.parameters, self.mean)
            return
        strength = learning_rate * gamma / (1 - gamma) * self.typical_sd
        for parameter, mean, precision in self._triples():
            pull = precision.mul_(strength)
            parameter.lerp_(mean, pull / (1 + pull))


class OutputStability:
    """Self-distillation on the original's own samples."""

    def __init__(self, backbone: Backbone, own_samples: Clean | Tensor) -> None:
        self.backbone, self.own_samples = backbone, own_samples

    def __call__(self, network: nn.Module, batch_size: int, g: torch.Generator) -> Tensor:
        """B on a random batch; a scalar."""
        noised = draw(self.backbone, self.own_samples, batch_size, g)
        with torch.no_grad():
            target = self.backbone.output(self.backbone.network, noised.x_t, noised.t, noised.c)
        return regression_error(self.backbone, network, noised, target).mean()
