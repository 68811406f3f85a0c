"""`erasediff`: keep D_r under the constraint that the forget images are denoised wrongly, as a bilevel problem.

    min_θ L_r(θ)  s.t.  L_f(θ) ≤ min L_f,   L_f = E_{x ~ D_f} ‖ε_θ(x_t, t) − ε'‖², ε' ~ U[0, 1),   L_r = retain loss
    ∇ = g_r + λ g_f,   λ = max(0, η − ⟨g_r, g_f⟩ / ‖g_f‖²) while K inner steps can still lower L_f

Wu et al., arXiv 2401.05779 (see `vdu.objective.bilevel`). Nothing had to be changed for an unconditional model: the
wrong noise needs no label. The inner steps are plain gradient steps that start afresh each time: no state to reset.
"""

from __future__ import annotations

from pydantic import Field
from torch import nn

from vdu.diffusion.denoising import Denoising
from vdu.objective.bilevel import Bilevel
from vdu.objective.contract import Count, Method, MethodSettings, Positive
from vdu.objective.surrogate import AnotherNoise
from vdu.preparation.preparation import Preparation

__all__ = ["METHOD"]


class Settings(MethodSettings):
    """K = 2 and η = 0.1 as published."""

    needs = ("forget", "retain")
    steps: Count = 100
    learning_rate: Positive = 5e-5
    inner_steps: Count = Field(2, description="K: steps that show how far L_f can still fall")
    inner_learning_rate: Positive = Field(1e-3, description="ζ of those steps")
    eta: Positive = Field(0.1, description="η: least share of L_f's own gradient that a step must follow")


def build(settings: Settings, preparation: Preparation, network: nn.Module) -> Bilevel:
    """L_f = wrong noise, L_r = the retain loss."""
    return Bilevel(
        erasing=AnotherNoise(preparation.backbone, preparation.forget),
        keeping=Denoising(preparation.backbone, preparation.retain),
        inner_steps=settings.inner_steps,
        inner_rate=settings.inner_learning_rate,
        eta=settings.eta,
    )


METHOD = Method("erasediff", Settings, build)
