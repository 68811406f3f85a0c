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

import torch
from torch import Tensor, nn

from vdu.backbone import Backbone
from vdu.noising import Clean, draw
from vdu.posterior import Posterior

__all__ = ["OutputStability", "WeightStability"]


class WeightStability:
    """Gaussian KL to the posterior for the parameters of ``network`` that require gradients.

    ``network`` still has the original's weights: they are the anchor where the posterior names no other mean.
    """

    def __init__(self, network: nn.Module, posterior: Posterior) -> None:
        named = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
        self.parameters: list[Tensor] = [p for _, p in named]
        anchors = posterior.mean or {n: p.detach().clone() for n, p in named}
        self.mean = [anchors[n].to(p.device, torch.float32) for n, p in named]
        self.precision = [1 / posterior.variance[n].to(p.device, torch.float32) for n, p in named]
        self.count = sum(p.numel() for p in self.parameters)
        self.typical_sd = float(torch.cat([p.flatten() for p in self.precision]).rsqrt().median())

    @torch.no_grad()
    def value(self) -> float:
        """B, for the log."""
        offsets = torch._foreach_sub(self.parameters, self.mean)
        return sum(float((o * o * p).sum()) for o, p in zip(offsets, self.precision, strict=True)) / (2 * self.count)

    @torch.no_grad()
    def add_gradient(self, weight: float) -> None:
        """Add ``weight`` ∇B to the parameters' gradients in closed form, without a graph."""
        pull = torch._foreach_sub(self.parameters, self.mean)
        torch._foreach_mul_(pull, self.precision)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        torch._foreach_add_(gradients, pull, alpha=weight / self.count)

    @torch.no_grad()
    def proximal_step(self, learning_rate: float, gamma: float) -> None:
        """The exact proximal step in place. At γ = 1 the parameters return to the anchor."""
        if gamma >= 1:
            torch._foreach_copy_(self.parameters, self.mean)
            return
        strength = learning_rate * gamma / (1 - gamma) * self.typical_sd
        pull = torch._foreach_mul(self.precision, strength)
        share = torch._foreach_div(pull, torch._foreach_add(pull, 1.0))
        torch._foreach_lerp_(self.parameters, self.mean, share)


class OutputStability:
    """Self-distillation on the original's own samples."""

    def __init__(self, backbone: Backbone, own_samples: Clean | Tensor) -> None:
        self.backbone, self.own_samples = backbone, own_samples

    def __call__(self, network: nn.Module, batch_size: int, g: torch.Generator) -> Tensor:
        """B on a random batch; a scalar."""
        noised = draw(self.backbone, self.own_samples, batch_size, g)
        with torch.no_grad():
            target = self.backbone.output(self.backbone.network, noised.x_t, noised.t, noised.c)
        return (self.backbone.output(network, noised.x_t, noised.t, noised.c) - target).pow(2).mean()
