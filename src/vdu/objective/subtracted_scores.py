"""Subtracted importance-sampled scores: keep D_r and push D_f away in one forward pass.

    m ~ (1 − λ) q(·|x) + λ q(·|a),   x ~ D_r, a ~ D_f, one t
    w_x = q(m|x) / q_λ(m) = 1/((1 − λ) + λ r),   w_a = q(m|a) / q_λ(m) = 1/((1 − λ)/r + λ),   r = q(m|a)/q(m|x)
    ∇ = ∇ w_x ‖ε_θ(m) − ε_x‖² − s ∇ w_a ‖ε_θ(m) − ε_a‖²,   s: the second is the wanted share of the first in norm

``ε_x = (m − √ᾱ x)/√(1 − ᾱ)``, ``ε_a`` likewise; ``log r = ½(‖ε_x‖² − ‖ε_a‖²)`` summed over dimensions, the errors are
means over dimensions. Alberti et al., arXiv 2503.01034.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vdu.backbone import Backbone
from vdu.diffusion.noising import Clean
from vdu.objective.contract import Direction
from vdu.precision import autocast
from vdu.weights.gradients import gradients, inner, trained, write_gradients

__all__ = ["SubtractedScores", "importance_weights"]


def importance_weights(log_ratio: Tensor, mixture: float) -> tuple[Tensor, Tensor]:
    """``w_x`` and ``w_a`` from ``log r`` of any shape and λ in (0, 1); finite for every r."""
    log_keep, log_away = (log_ratio.new_tensor(math.log(share)) for share in (1 - mixture, mixture))
    w_x = (-torch.logaddexp(log_keep, log_away + log_ratio)).exp()
    w_a = (-torch.logaddexp(log_keep - log_ratio, log_away)).exp()
    return w_x, w_a


@dataclass
class SubtractedScores(Direction):
    """``retain`` and ``forget`` images, λ ``mixture``, and the ascent's ``share`` of the descent's norm."""

    backbone: Backbone
    retain: Clean | Tensor
    forget: Clean | Tensor
    mixture: float
    share: float

    def losses(self, network: nn.Module, batch_size: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
        """Both weighted errors on one random batch; two scalars with one graph."""
        retain, forget = Clean.of(self.retain), Clean.of(self.forget)
        kept = retain[torch.randint(len(retain), (batch_size,), generator=g)]
        undesired = forget[torch.randint(len(forget), (batch_size,), generator=g)]
        x, a = kept.x_0, undesired.x_0
        t = torch.randint(self.backbone.timesteps, (batch_size,), generator=g)
        eps = torch.randn(x.shape, generator=g)
        from_a = (torch.rand(batch_size, generator=g) < self.mixture).view(-1, 1, 1, 1)
        device = next(network.parameters()).device
        x, a, t, eps, from_a = (v.to(device) for v in (x, a, t, eps, from_a))
        m = self.backbone.add_noise(torch.where(from_a, a, x), eps, t)
        eps_x, eps_a = self.backbone.noise_from(m, x, t), self.backbone.noise_from(m, a, t)
        log_ratio = 0.5 * (eps_x.pow(2) - eps_a.pow(2)).sum(dim=(1, 2, 3))
        w_x, w_a = importance_weights(log_ratio, self.mixture)
        c = None
        if kept.c is not None and undesired.c is not None:
            c = torch.where(from_a.flatten().cpu(), undesired.c, kept.c)
        predicted = self.backbone.predict_eps(network, m, t, c)
        error_x, error_a = ((predicted - e).pow(2).mean(dim=(1, 2, 3)) for e in (eps_x, eps_a))
        return (w_x * error_x).mean(), (w_a * error_a).mean()

    def gradient(self, network: nn.Module, batch_size: int, g: torch.Generator, precision: str) -> Tensor:
        """The descent's gradient less the rescaled ascent's."""
        parameters = trained(network)
        with autocast(network, precision):
            descent, ascent = self.losses(network, batch_size, g)
        g_x, g_a = gradients(descent, parameters, keep_graph=True), gradients(ascent, parameters)
        self.backbone.passes += 2 * batch_size  # the second way back through one graph
        norm_x, norm_a = math.sqrt(inner(g_x, g_x)), math.sqrt(inner(g_a, g_a))
        scale = self.share * norm_x / norm_a if norm_a > 0 else 0.0
        write_gradients(parameters, g_x, g_a, -scale)
        return (descent - scale * ascent).detach()
