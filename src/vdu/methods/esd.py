"""`esd`: the original's prediction, guided away from the undesired content's, as a regression target.

    L = E_{x ~ D_f, t, ε} ‖ε_θ(x_t, t) − [ε_* − η (ε_c − ε_*)](x_t, t)‖²

Gandikota et al., arXiv 2303.07345. Changed for an unconditional model, which takes no prompt c: ε_c is a second
network's prediction, a teacher of the undesired content (``--teacher``) or else the original fine-tuned briefly on D_f
(the forget score); x_t are noised forget images in place of roll-outs with the prompt. As published, no stability term.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from vdu.objective.contract import Method, MethodSettings, Objective, Positive
from vdu.objective.plasticity import Guided
from vdu.preparation.preparation import Preparation

__all__ = ["METHOD"]


class Settings(MethodSettings):
    """η = 1 as published; the learning rate is one for small networks."""

    takes = ("teacher",)
    learning_rate: Positive = 5e-5
    schedule: Literal["constant", "cosine"] = "cosine"
    eta: float = Field(1.0, ge=0, description="η: how far from the undesired score")


def build(settings: Settings, preparation: Preparation, network: nn.Module) -> Objective:
    """A = guided, γ = 0."""
    score = preparation.undesired_score
    return Objective(0.0, Guided(preparation.backbone, preparation.forget, score, settings.eta))


METHOD = Method("esd", Settings, build)
