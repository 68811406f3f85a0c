"""`vdu-quick`: `vdu` with about half of the work, for a first look or a slow machine.

Fewer own samples and noised pictures, and smaller batches: the same target, reached less closely.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from vdu.methods import vdu_bayes
from vdu.objective.contract import Count, Method, Objective, Samples
from vdu.preparation.preparation import Preparation

__all__ = ["METHOD"]


class Settings(vdu_bayes.Settings):
    """What was left out costs some points of PUL; see the research log."""

    batch_size: Count = 16
    own_samples: Samples = Field(384, description="as of `vdu`; 256 with text")
    bank_items: Count = 1536
    score_steps: Count = Field(30, description="as of `vdu`; 50 with text")
    inversion_steps: int = Field(40, ge=0)
    guard_every_steps: int = Field(150, ge=0)

    with_text: ClassVar[dict[str, Any]] = vdu_bayes.Settings.with_text | {"own_samples": 256, "score_steps": 50}


def build(settings: Settings, preparation: Preparation, network: nn.Module) -> Objective:
    """As `vdu`."""
    return vdu_bayes.build(settings, preparation, network)


METHOD = Method("vdu-quick", Settings, build)
