"""`retrack`: send the denoising of forget images towards their nearest retained images.

    L = λ E_{x ~ D_f} Σ_k w_k ‖ε_θ(x_t, t) − e_k‖² + (1 − λ) E_{x ~ D_r} ‖y − f_θ(x_t, t)‖²,   w = softmax_k(−½‖e_k‖²)

``e_k`` is the noise that leads from the k-th nearest retained image to ``x_t``. Shi et al., arXiv 2509.13007 (see
`vdu.objective.redirection`); made for unconditional models, nothing changed. λ is small because ``e_k`` is large at
small t.
"""

from __future__ import annotations

from pydantic import Field
from torch import nn

from vdu.diffusion.denoising import Denoising
from vdu.objective.contract import Count, Method, MethodSettings, Objective, Positive
from vdu.objective.redirection import Redirection
from vdu.preparation.preparation import Preparation

__all__ = ["METHOD"]


class Settings(MethodSettings):
    """K and λ as published; few steps."""

    needs = ("forget", "retain")
    steps: Count = 60
    learning_rate: Positive = 1e-4
    redirect: float = Field(0.01, gt=0, lt=1, description="λ, the weight of the redirection")
    neighbours: Count = Field(10, description="nearest retained images of each forget image")


def build(settings: Settings, preparation: Preparation, network: nn.Module) -> Objective:
    """A = redirection, B = the retain loss, γ = 1 − λ."""
    backbone, forget, retain = preparation.backbone, preparation.forget, preparation.retain
    redirection = Redirection(backbone, forget, retain, settings.neighbours)
    return Objective(1 - settings.redirect, redirection, Denoising(backbone, retain))


METHOD = Method("retrack", Settings, build)
