"""A first-order step of the bilevel problem "keep D_r, among all weights that have forgotten D_f".

    min_θ L_r(θ)   subject to   q(θ) = L_f(θ) − f̂ ≤ 0,   f̂ = L_f(φ_K),   φ_0 = θ,  φ_{k+1} = φ_k − ζ ∇L_f(φ_k)
    ∇ = g_r + λ g_q,   g_r = ∇L_r,   g_q = ∇L_f,   λ = max(0, η − ⟨g_r, g_q⟩ / ‖g_q‖²) where q > 0, else 0

f̂ is held constant, so it does not bend g_q; it says whether L_f can still be lowered, and the constraint pulls only as
long as it can. λ is the least that makes the step lower L_f by at least η of its own gradient's: ⟨∇, g_q⟩ ≥ η‖g_q‖².
Wu et al., arXiv 2401.05779; the multiplier is that of first-order bilevel descent (Liu et al., arXiv 2209.08709).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vdu.objective.contract import Direction
from vdu.objective.plasticity import Term
from vdu.precision import autocast
from vdu.weights.gradients import gradients, inner, trained, write_gradients

__all__ = ["Bilevel", "barrier_multiplier", "lowest_reached"]


def barrier_multiplier(g_r: list[Tensor], g_q: list[Tensor], q: float, eta: float) -> float:
    """λ ≥ 0 of the constraint ``q ≤ 0``."""
    power = inner(g_q, g_q)
    return max(0.0, eta - inner(g_r, g_q) / power) if q > 0 and power > 0 else 0.0


def lowest_reached(network: nn.Module, loss: Callable[[], Tensor], steps: int, rate: float) -> float:
    """f̂: the loss after ``steps`` plain gradient steps of size ``rate``; the weights are put back."""
    parameters = trained(network)
    start = [p.detach().clone() for p in parameters]
    for _ in range(steps):
        slope = gradients(loss(), parameters)
        with torch.no_grad():
            torch._foreach_add_(parameters, slope, alpha=-rate)
    with torch.no_grad():
        reached = float(loss())
        torch._foreach_copy_(parameters, start)
    return reached


@dataclass
class Bilevel(Direction):
    """``erasing`` is L_f, ``keeping`` L_r; K ``inner_steps`` of size ζ ``inner_rate``; ``eta`` η."""

    erasing: Term
    keeping: Term
    inner_steps: int
    inner_rate: float
    eta: float

    def gradient(self, network: nn.Module, batch_size: int, g: torch.Generator, precision: str) -> Tensor:
        """g_r + λ g_q, all losses of D_f on one batch; returns L_r + λ q."""
        parameters = trained(network)
        batch = int(torch.randint(2**31, (1,), generator=g))

        def erasing() -> Tensor:
            with autocast(network, precision):
                return self.erasing(network, batch_size, torch.Generator().manual_seed(batch))

        reached = lowest_reached(network, erasing, self.inner_steps, self.inner_rate)
        with autocast(network, precision):
            keeping = self.keeping(network, batch_size, g)
        forgetting = erasing()
        q = float(forgetting.detach()) - reached
        g_r, g_q = gradients(keeping, parameters), gradients(forgetting, parameters)
        multiplier = barrier_multiplier(g_r, g_q, q, self.eta)
        write_gradients(parameters, g_r, g_q, multiplier)
        return keeping.detach() + multiplier * q
