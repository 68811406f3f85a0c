"""`vdu-paper`: the variational objective as published: ascent on D_f, Gaussian KL to the posterior, explicit gradient.

    L = (1 − γ) A + γ B,   A = −E ‖ε − ε_θ‖²,   B = (1/P) Σ_i (θ_i − μ*_i)² / (2σ*_i²)

Panda et al., arXiv 2510.04058. The guard only watches and rolls back; it does not change the objective.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from vdu.objective.contract import Count, Method, MethodSettings, Objective, Positive
from vdu.objective.plasticity import Ascent
from vdu.objective.stability import WeightStability
from vdu.preparation.preparation import Preparation

__all__ = ["METHOD"]


class Settings(MethodSettings):
    """γ as in the paper; `weighting` and `stability_step` choose between its forms and ours."""

    needs = ("forget", "posterior")
    holds_weights = True
    steps: Count = 50
    learning_rate: Positive = 1e-5
    guard_every_steps: int = Field(5, ge=0)
    gamma: float = Field(0.5, ge=0, le=1, description="γ: weight of the KL against the ascent")
    weighting: Literal["simple", "elbo"] = Field("simple", description="of the noise levels: simple or elbo")
    stability_step: Literal["explicit", "proximal"] = Field(
        "explicit", description="explicit gradient of the KL, or its exact proximal step"
    )


def build(settings: Settings, preparation: Preparation, network: nn.Module) -> Objective:
    """A = ascent, B = weights."""
    plasticity = Ascent(preparation.backbone, preparation.forget, settings.weighting)
    weights = WeightStability(network, preparation.posterior, preparation.backbone.network)
    return Objective(settings.gamma, plasticity, None, weights, settings.stability_step == "explicit")


METHOD = Method("vdu-paper", Settings, build)
