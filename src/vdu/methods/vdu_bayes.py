"""`vdu`, the default: the Bayes target on forget images (plasticity) and on the model's own samples (stability).

Needs the forget images only. π is estimated without labels and multiplied by ``strength``, since the estimate misses
what the model draws badly; ``--share`` sets π itself.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from vdu.bayes_target import BayesTarget
from vdu.noising import Clean
from vdu.objective import Count, Fraction, Method, MethodSettings, NotNegative, Objective, Positive
from vdu.preparation import Preparation

__all__ = ["METHOD"]

LARGEST_SHARE = 0.9


class Settings(MethodSettings):
    """Defaults measured with forget images alone."""

    steps: Count = 100
    learning_rate: Positive = 2e-4
    schedule: Literal["constant", "cosine"] = "cosine"
    ema_decay: Fraction = 0.9
    guard_every_steps: Count = 50
    stop_share: NotNegative | None = None
    gamma: float = Field(0.4, ge=0, le=1, description="weight of own samples against forget images")
    strength: float = Field(1.4, gt=0, description="factor on the undesired share π")
    rho_max: float = Field(0.9, gt=0, lt=1, description="largest ρ: bounds the guidance at ρ/(1 − ρ)")


def build(settings: Settings, preparation: Preparation, network: nn.Module) -> Objective:
    """A and B are the same regression on different images."""
    share = min(LARGEST_SHARE, settings.strength * preparation.share)

    def term(images: Clean) -> BayesTarget:
        return BayesTarget(
            preparation.backbone,
            images,
            preparation.forget_score,
            preparation.discriminator,
            share,
            settings.rho_max,
        )

    return Objective(settings.gamma, term(preparation.forget), term(preparation.own_samples))


METHOD = Method("vdu", Settings, build)
