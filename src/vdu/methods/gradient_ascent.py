"""`ga`: plain ascent on the forget images' loss, no regulariser: it collapses, and the guard rolls it back."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from vdu.objective.contract import Count, Method, MethodSettings, Objective, Positive
from vdu.objective.plasticity import Ascent
from vdu.preparation.preparation import Preparation

__all__ = ["METHOD"]


class Settings(MethodSettings):
    """A small constant learning rate: ascent is fast."""

    steps: Count = 50
    learning_rate: Positive = 1e-5
    guard_every_steps: int = Field(5, ge=0)


def build(settings: Settings, preparation: Preparation, network: nn.Module) -> Objective:
    """A = ascent, γ = 0."""
    return Objective(0.0, Ascent(preparation.backbone, preparation.forget))


METHOD = Method("ga", Settings, build)
