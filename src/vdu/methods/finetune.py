"""`finetune`: go on training on images to keep, and hope that the rest fades.

    L = E_{x ~ D_r, t, ε} ‖y − f_θ(x_t, t)‖²

The plainest method that sees D_r; no plasticity term. Ho et al., arXiv 2006.11239 (the loss); as it stands for an
unconditional model.
"""

from __future__ import annotations

from pydantic import Field
from torch import nn

from vdu.diffusion.denoising import Denoising
from vdu.objective.contract import Count, Method, MethodSettings, Objective, Positive
from vdu.preparation.preparation import Preparation

__all__ = ["METHOD"]


class Settings(MethodSettings):
    """Forgetting by neglect takes its time: more steps than the others."""

    needs = ("forget", "retain")
    steps: Count = 300
    learning_rate: Positive = 1e-4
    guard_every_steps: int = Field(25, ge=0)


def build(settings: Settings, preparation: Preparation, network: nn.Module) -> Objective:
    """The retain loss alone; the forget images serve the guard."""
    return Objective(0.0, Denoising(preparation.backbone, preparation.retain))


METHOD = Method("finetune", Settings, build)
