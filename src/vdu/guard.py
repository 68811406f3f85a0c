"""The guard: what a small fixed-seed sample of the network looks like while it is being changed.

    forget share   share of the sample that a judge assigns to the forget set
    none share     share that is like nothing the model made before
    diversity      mean distance between samples, relative to the original's
    change         root mean squared distance in x_0 to the original's sample of the same seed
    score          forget share + rise of the none share + loss of diversity, both beyond what chance does to a small
                   sample

    damage         score − forget share: the rise of the none share and the loss of diversity

The last sound look whose score is the least up to chance is handed out: a sample more or less of a hundred must not
undo half of the steps of a falling rate. The original is handed out only where no look is worth its damage,

    damage ≤ LARGEST_DAMAGE · (1 − forget share / the original's)

All of the content is thus worth as much as what would be called broken, however seldom the model makes it: that one
picture in twenty-five is gone is what was asked for. And a judge that sees little of the content, or nothing, must not
undo all of the work. What a judge goes by: `vdu.preparation.judge`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vdu.diffusion.sampling import DEFAULT_STEPS, sample
from vdu.preparation.judge import Judge
from vdu.preparation.preparation import Preparation

__all__ = ["Check", "Guard", "handed_out"]

LARGEST_NONE_RISE = 0.10
LARGEST_CHANGE = 0.5
LARGEST_DAMAGE = 0.25
SMALLEST_DIVERSITY = 1 - LARGEST_DAMAGE
TOLERATED_NONE_RISE = 0.03
TOLERATED_DIVERSITY_LOSS = 0.05
TOLERATED_SCORE_RISE = 0.03  # two standard errors of the difference of two shares of 1.5 % in 128 samples


@dataclass(frozen=True)
class Check:
    """One look at the network. Shares are in 0 … 1; change and score None where the samples are not finite.

    ``way``: how far from the best weights before to those of the step it was; 1 but where the loop goes back.
    """

    step: int
    forget_share: float
    none_share: float
    diversity: float
    change: float | None
    score: float | None
    broken: bool
    way: float = 1.0

    @property
    def rank(self) -> float:
        """The score to compare by: without one a look is worse than any."""
        return math.inf if self.score is None else self.score


def _is_worth_it(check: Check, original: Check) -> bool:
    """Whether as much is gone as the damage is worth."""
    gone = 1 - check.forget_share / original.forget_share if original.forget_share else 1.0
    return check.rank - check.forget_share <= LARGEST_DAMAGE * gone


def handed_out(checks: Sequence[Check]) -> Check | None:
    """The look whose weights are handed out, of the looks of a run in their order; None where none was sound.

    The first is at the original. A part of the way must score least exactly.
    """
    original = checks[0]
    sound = [c for c in checks[1:] if not c.broken and _is_worth_it(c, original)]
    if not sound:
        return None if original.broken else original
    least = min(reversed(sound), key=lambda c: c.rank)
    if least.way < 1:
        return least
    return [c for c in sound if c.way == 1 and c.rank <= least.rank + TOLERATED_SCORE_RISE][-1]


def _spread(images: Tensor) -> float:
    return float(torch.pdist(images.flatten(1)).mean())


class Guard:
    """Compares samples of a changing network with the original's, seed by seed."""

    def __init__(
        self,
        preparation: Preparation,
        judge: Judge,
        *,
        count: int = 128,
        sampler_steps: int = DEFAULT_STEPS,
        seed: int = 77,
    ) -> None:
        self.preparation, self.judge = preparation, judge
        self.count, self.sampler_steps, self.seed = count, sampler_steps, seed
        original = preparation.backbone.network
        self.original = preparation.parts("samples-guard", lambda: {"x_0": self._sample(original)})["x_0"]
        self.forget_share, self.none_share = self._shares(self.original)
        self.diversity = _spread(self.original)

    def _sample(self, network: nn.Module) -> Tensor:
        return sample(
            self.preparation.backbone,
            network,
            self.count,
            self.seed,
            steps=self.sampler_steps,
            precision=self.preparation.precision,
            conditions=self.preparation.own_conditions(self.count),
            purpose="guard",
        )

    def _shares(self, images: Tensor) -> tuple[float, float]:
        forget, none = self.judge(images)
        return float(forget.cpu().double().mean()), float(none.cpu().double().mean())

    def start(self) -> Check:
        """The look before the first step: at the original itself."""
        return self._scored(0, self.original, (self.forget_share, self.none_share))

    def check(self, network: nn.Module, step: int) -> Check:
        """Sample, judge and score."""
        return self._scored(step, self._sample(network))

    def _scored(self, step: int, images: Tensor, shares: tuple[float, float] | None = None) -> Check:
        diversity = _spread(images) / self.diversity if self.diversity else 1.0  # all alike: none to lose
        change = float((images - self.original).pow(2).mean().sqrt())
        # Pixels that are finite may still be too large to be squared.
        if not math.isfinite(diversity) or not math.isfinite(change):
            return Check(step, 1.0, 1.0, 0.0, None, None, True)
        forget, none = shares or self._shares(images)
        rise = max(0.0, none - self.none_share)
        score = forget + max(0.0, rise - TOLERATED_NONE_RISE) + max(0.0, 1 - TOLERATED_DIVERSITY_LOSS - diversity)
        # What was undesired may become something that the model did not make before, but not most of all samples.
        broken = rise > max(LARGEST_NONE_RISE, min(self.forget_share, LARGEST_CHANGE)) or diversity < SMALLEST_DIVERSITY
        return Check(step, forget, none, diversity, change, score, broken)
