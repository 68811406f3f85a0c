"""`guided`: move away from the forget set's score by a constant η, with self-distillation on own samples."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from vdu.objective.contract import Fraction, Method, MethodSettings, Objective, Positive
from vdu.objective.plasticity import Guided
from vdu.objective.stability import OutputStability
from vdu.preparation.preparation import Preparation

__all__ = ["METHOD"]


class Settings(MethodSettings):
    """η as in ESD; γ weighs self-distillation."""

    learning_rate: Positive = 2e-4
    schedule: Literal["constant", "cosine"] = "cosine"
    eta: float = Field(1.0, ge=0, description="η: how far from the undesired score")
    gamma: Fraction = Field(0.6, description="weight of own samples against forget images")


def build(settings: Settings, preparation: Preparation, network: nn.Module) -> Objective:
    """A = guided, B = outputs."""
    plasticity = Guided(preparation.backbone, preparation.forget, preparation.forget_score(), settings.eta)
    return Objective(settings.gamma, plasticity, OutputStability(preparation.backbone, preparation.own_samples))


METHOD = Method("guided", Settings, build)
