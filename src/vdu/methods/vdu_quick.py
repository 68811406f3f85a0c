"""`vdu-quick`: `vdu` with about a third of the work, for a first look or a slow machine.

Fewer own samples and noised pictures, smaller batches, and fewer steps, along orthogonalised gradients
(`vdu.weights.muon`), with which the same target is reached as closely as with more of Adam's.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from vdu.methods import vdu_bayes
from vdu.objective.contract import Count, Method, Objective, Positive, Samples
from vdu.preparation.preparation import Preparation
from vdu.weights.optimizers import OptimizerName

__all__ = ["METHOD"]


class Settings(vdu_bayes.Settings):
    """Measured on digits; see the research log. With text it is `vdu` with less of everything."""

    steps: Count = Field(60, description="most optimiser steps; 150 with text")
    optimizer: OptimizerName = Field("muon", description="adam with text")
    learning_rate: Positive = Field(5e-4, description="of Muon; with text 1e-4, of Adam")
    batch_size: Count = 16
    own_samples: Samples = Field(384, description="as of `vdu`; 256 with text")
    bank_items: Count = 1536
    score_steps: Count = Field(20, description="as of `vdu`; 50 with text")
    inversion_steps: int = Field(40, ge=0)
    guard_every_steps: int = Field(150, ge=0)

    with_text: ClassVar[dict[str, Any]] = vdu_bayes.Settings.with_text | {
        "steps": 150,
        "optimizer": "adam",
        "own_samples": 256,
        "score_steps": 50,
    }


def build(settings: Settings, preparation: Preparation, network: nn.Module) -> Objective:
    """As `vdu`."""
    return vdu_bayes.build(settings, preparation, network)


METHOD = Method("vdu-quick", Settings, build)
