"""`siss`: importance-weighted descent on D_r and ascent on D_f, from one mixture and one forward pass.

    ∇ = ∇ w_x ‖ε_θ(m) − ε_x‖² − s ∇ w_a ‖ε_θ(m) − ε_a‖²,   m ~ (1 − λ) q(·|x) + λ q(·|a),   x ~ D_r, a ~ D_f

s holds the ascent at a share of the descent in norm. Alberti et al., arXiv 2503.01034 (see
`vdu.objective.subtracted_scores`); made for unconditional models, nothing changed.
"""

from __future__ import annotations

from pydantic import Field
from torch import nn

from vdu.objective.contract import Count, Method, MethodSettings, Positive
from vdu.objective.subtracted_scores import SubtractedScores
from vdu.preparation.preparation import Preparation

__all__ = ["METHOD"]


class Settings(MethodSettings):
    """λ, the share and the learning rate as published."""

    needs = ("forget", "retain")
    steps: Count = 300
    learning_rate: Positive = 5e-5
    guard_every_steps: int = Field(25, ge=0)
    mixture: float = Field(0.5, gt=0, lt=1, description="λ, the share of noised forget images")
    ascent_share: Positive = Field(0.1, description="norm of the ascent's gradient by that of the descent's")


def build(settings: Settings, preparation: Preparation, network: nn.Module) -> SubtractedScores:
    """Both terms in one."""
    return SubtractedScores(
        preparation.backbone, preparation.retain, preparation.forget, settings.mixture, settings.ascent_share
    )


METHOD = Method("siss", Settings, build)
