"""`vdu`, the default: the Bayes target on forget images (plasticity) and on the model's own samples (stability).

Needs the forget images only. How often and where the model makes the undesired is estimated without labels
(`vdu.preparation.responsibility`); ``--share`` sets the level. ``strength`` is over 1 since what the model draws badly
is missed, and a hundred steps reach only a part of the target. Where noise leaves many of the model's own samples
possible, they say what is undesired and which way leads from it, without a strength; where a picture shows the
undesired plainly, they are what is left (`vdu.preparation.retained_samples`). Neither with text, since they know
nothing of a prompt. A model that takes text begins where the words that it was given have the empty prompt's keys and
values (`vdu.text.closed_form`) and learns that they say nothing (`vdu.text.asking`). Given none, it is first asked what
prompts would bring the forget images (`vdu.text.inversion`), and what is made of neutral prompts may tell the words, or
those of the members of a kind (`vdu.preparation.members`).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field
from torch import nn

from vdu.diffusion.noised_bank import NoisedBank
from vdu.errors import VduError
from vdu.objective.bayes_target import BayesTarget, guided_until
from vdu.objective.contract import Count, Fraction, Method, MethodSettings, NotNegative, Objective, Positive, Samples
from vdu.preparation.preparation import OWN_SAMPLES, SCORE_STEPS, Preparation

__all__ = ["METHOD"]


class Settings(MethodSettings):
    """Defaults measured with forget images alone."""

    steps: Count = 150
    learning_rate: Positive = Field(2e-4, description="of the optimizer; 1e-4 with text")
    schedule: Literal["constant", "cosine"] = "cosine"
    ema_decay: Fraction = 0.9
    own_samples: Samples = Field(1024, description="samples of the original to learn from; 512 with text")
    score_steps: Count = Field(60, description="steps in which the forget score is fitted; 100 with text")
    inversion_steps: int = Field(75, ge=0, description="steps in which prompts are found where no words are given")
    guard_every_steps: int = Field(75, ge=0)
    stop_share: NotNegative | None = None
    gamma: float = Field(0.6, ge=0, le=1, description="weight of own samples against forget images; 0.75 with text")
    strength: Positive = Field(
        5.0, description="factor on the odds where few own samples are possible; 1: Bayes; 2.5 with text"
    )
    rho_max: float = Field(0.9, gt=0, lt=1, description="largest ρ: bounds the guidance at ρ/(1 − ρ)")
    retained_samples: bool = Field(True, description="aim by own samples where they know more; not with text")
    prompted_rho_max: float = Field(0.6, ge=0, lt=1, description="largest ρ in 1/(1 − ρ) where prompts are read")
    largest_features: bool = Field(False, description="tell the undesired by the largest values of inner maps too")

    of_steps: ClassVar[frozenset[str]] = frozenset(
        {"steps", "batch_size", "optimizer", "learning_rate", "schedule", "max_gradient_norm", "ema_decay"}
        | {"guard_every_steps", "stop_share", "gamma", "strength", "rho_max", "prompted_rho_max"}
    )

    with_text: ClassVar[dict[str, Any]] = {
        "gamma": 0.75,
        "learning_rate": 1e-4,
        "strength": 2.5,
        "retained_samples": False,
        "own_samples": OWN_SAMPLES,
        "score_steps": SCORE_STEPS,
    }

    def for_text(self) -> Self:
        if self.retained_samples and "retained_samples" in self.model_fields_set:
            raise VduError("retained_samples is for models that take no text: leave it out")
        return self.model_copy(update={k: v for k, v in self.with_text.items() if k not in self.model_fields_set})


def build(settings: Settings, preparation: Preparation, network: nn.Module) -> Objective:
    """A and B are the same regression on different images."""
    preparation.inversion_steps = settings.inversion_steps
    preparation.backbone.largest_features = settings.largest_features
    retained = preparation.retained_samples if settings.retained_samples else None

    def term(bank: NoisedBank) -> BayesTarget:
        return BayesTarget(
            preparation.backbone,
            bank,
            preparation.discriminator,
            preparation.prompted_discriminator,
            strength=settings.strength,
            rho_max=settings.rho_max,
            prompted_rho_max=settings.prompted_rho_max,
            retained=retained,
        )

    stability, start = term(preparation.own_bank), preparation.closed_form
    plasticity = term(preparation.taught_forget_bank)
    until = guided_until(plasticity.guided_times, stability.guided_times)
    if until:
        score = preparation.forget_score(until)
        for part in (plasticity, stability):
            part.guide(score, until, preparation.precision)
    return Objective(settings.gamma, plasticity, stability, start=start)


METHOD = Method("vdu", Settings, build)
