"""`capped-ascent`: ascent that stops pushing an image once its error reaches a cap.

The default of 1 is the error of predicting nothing (zero) for ε, and for v where the images' mean square is 1. For x_0
it is that mean square: choose the cap accordingly.
"""

from __future__ import annotations

from pydantic import Field
from torch import nn

from vdu.objective.contract import Fraction, Method, MethodSettings, Objective, Positive
from vdu.objective.plasticity import Ascent
from vdu.objective.stability import OutputStability
from vdu.preparation.preparation import Preparation

__all__ = ["METHOD"]


class Settings(MethodSettings):
    """Capped ascent, self-distillation on own samples for stability."""

    learning_rate: Positive = 5e-5
    cap: float = Field(1.0, gt=0, description="largest squared error per dimension that is still pushed up")
    gamma: Fraction = Field(0.8, description="weight of own samples against forget images")


def build(settings: Settings, preparation: Preparation, network: nn.Module) -> Objective:
    """A = −min(error, cap), B = outputs."""
    plasticity = Ascent(preparation.backbone, preparation.forget, cap=settings.cap)
    return Objective(settings.gamma, plasticity, OutputStability(preparation.backbone, preparation.own_samples))


METHOD = Method("capped-ascent", Settings, build)
