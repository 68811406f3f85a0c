"""Was the concept forgotten, and only that: UA, IRA and CRA of UnlearnCanvas (Zhang et al., arXiv 2402.11846).

Samples are drawn with prompts of known style and object and classified by a detector for each domain. The target T is a
class of one domain (``inside``); the other is ``across``. a: class asked for, s: class seen.

    UA   share of s_inside ≠ T              among a_inside = T
    IRA  share of s_inside = a_inside       among a_inside ≠ T, where the prompt names a class of that domain
    CRA  share of s_across = a_across       among a_inside ≠ T, where the prompt names a class of the other domain

Two things are not as published. A detector here may answer "none" (its reject), which is never the class asked for. So
that pictures of noise do not pass for forgetting, ``ua_none`` is the part of UA that is none, ``ua_other`` the part
that shows another class. And the published code takes CRA over all prompts: here those that ask for T stand apart as
``cra_target`` (does a noto apple become another apple, or no apple?), since "innocent prompts" are those without T.

A mean hides whom it is made of: ``seen_as_asked`` says of each class how often it is still seen where it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vdu.evaluation.metrics import Interval, share_interval

__all__ = ["Classes", "accuracies", "seen_as_asked", "unlearning_accuracy"]


@dataclass(frozen=True)
class Classes:
    """Class indices ``(N,)`` in the target's domain and in the other; −1: none."""

    inside: Tensor
    across: Tensor


def _share(flags: Tensor) -> Interval:
    """With Wilson's interval: a bootstrap's has no width at 0 and 100 %, where these figures often are."""
    return share_interval(flags) if len(flags) else Interval(None, None, None)


def unlearning_accuracy(asked: Tensor, seen: Tensor, target: int) -> dict[str, Interval]:
    """UA and its two parts from class indices ``(N,)`` in the target's domain, in percent."""
    seen = seen[asked == target]
    return {
        "ua": _share(seen != target),
        "ua_none": _share(seen < 0),
        "ua_other": _share((seen != target) & (seen >= 0)),
    }


def accuracies(asked: Classes, seen: Classes, target: int) -> dict[str, Interval]:
    """UA with its parts, IRA, CRA and ``cra_target``, in percent; None where no sample was asked for such a thing."""
    wanted, named = asked.inside == target, asked.across >= 0
    inside, across = seen.inside == asked.inside, seen.across == asked.across
    return unlearning_accuracy(asked.inside, seen.inside, target) | {
        "ira": _share(inside[~wanted & (asked.inside >= 0)]),
        "cra": _share(across[~wanted & named]),
        "cra_target": _share(across[wanted & named]),
    }


def seen_as_asked(asked: Tensor, seen: Tensor, names: Sequence[str]) -> dict[str, Interval]:
    """Share of ``seen`` ``(N,)`` = ``asked`` ``(N,)``, in percent, for each of ``names`` that was asked for."""
    return {name: _share((seen == i)[asked == i]) for i, name in enumerate(names) if bool((asked == i).any())}
