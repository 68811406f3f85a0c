"""Original and unlearned text-to-image model asked with the same prompts and seeds, as one dictionary.

Plain prompts give UA, IRA and CRA (`vdu.evaluation.concept_accuracy`), the target's paraphrases a second UA, its plain
prompts under attack (`vdu.evaluation.concept_attack`) a third. What could not be measured is None, never a default.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from vdu.backbone import Backbone, weights_sha256
from vdu.concept_prompts import DOMAINS, ConceptPrompt, asking_for, of_kind
from vdu.errors import VduError
from vdu.evaluation import metrics
from vdu.evaluation.concept_accuracy import Classes, accuracies, seen_as_asked, unlearning_accuracy
from vdu.evaluation.concept_attack import UNDER_ATTACK, judged_attack
from vdu.evaluation.concept_sampling import ConceptJudge, ConceptSampler, Drawn
from vdu.evaluation.prompt_attack import AttackBudget
from vdu.provenance import made_by

__all__ = ["ConceptEvaluation", "evaluate_concept"]


@dataclass(frozen=True)
class ConceptEvaluation:
    """The record (JSON-able) and the samples of the plain prompts, paired."""

    record: dict[str, Any]
    before: Drawn
    after: Drawn


@dataclass(frozen=True)
class _Comparison:
    judge: ConceptJudge
    target: str

    @property
    def inside(self) -> str:
        return self.judge.domain(self.target)

    @property
    def index(self) -> int:
        return self.judge.detectors[self.inside].class_index(self.target)

    def wanted(self, drawn: Drawn) -> Tensor:
        """Which samples ``(N,)`` were asked for with the target."""
        return self.judge.asked(drawn, self.inside) == self.index

    def _classes(self, drawn: Drawn) -> tuple[Classes, Classes]:
        across = next(domain for domain in DOMAINS if domain != self.inside)
        asked = Classes(*(self.judge.asked(drawn, domain) for domain in (self.inside, across)))
        return asked, Classes(drawn.seen[self.inside], drawn.seen[across])

    def plain(self, before: Drawn, after: Drawn) -> dict[str, Any]:
        """UA, IRA, CRA of both models and how far the retained samples are from the original's."""
        figures: dict[str, Any] = {}
        for suffix, drawn in (("", after), ("_original", before)):
            asked, seen = self._classes(drawn)
            figures |= {f"{k}{suffix}": asdict(v) for k, v in accuracies(asked, seen, self.index).items()}
        by_class = {"by_class": self._by_class(after), "by_class_original": self._by_class(before)}
        return figures | by_class | self._distances(before, after)

    def _by_class(self, drawn: Drawn) -> dict[str, Any]:
        """By domain and class, how much of what was asked for without the target is seen: what IRA and CRA are of."""
        kept, shares = ~self.wanted(drawn), {}
        for domain, detector in self.judge.detectors.items():
            asked, seen = self.judge.asked(drawn, domain)[kept], drawn.seen[domain][kept]
            shares[domain] = {k: asdict(v) for k, v in seen_as_asked(asked, seen, detector.class_names).items()}
        return shares

    def _distances(self, before: Drawn, after: Drawn) -> dict[str, float | None]:
        """Fréchet and kernel distance of prompts without the target, to the original's samples of the same seeds."""
        kept = ~self.wanted(before)
        if before.features is None or after.features is None or int(kept.sum()) < metrics.FEWEST_SAMPLES:
            return {"fid_to_original": None, "kid_to_original": None}
        a, b = after.features[kept], before.features[kept]
        if not bool(a.isfinite().all() and b.isfinite().all()):  # of a model that makes NaN
            return {"fid_to_original": None, "kid_to_original": None}
        return {"fid_to_original": metrics.frechet_distance(a, b), "kid_to_original": metrics.kernel_distance(a, b)}

    def only_target(self, name: str, drawn: Drawn | None) -> dict[str, Any]:
        """UA and its parts, the names followed by ``name``, from samples that were all asked for the target."""
        if drawn is None:
            return {f"{k}_{name}": None for k in ("ua", "ua_none", "ua_other")}
        asked = self.judge.asked(drawn, self.inside)
        figures = unlearning_accuracy(asked, drawn.seen[self.inside], self.index)
        return {f"{k}_{name}": asdict(v) for k, v in figures.items()}


def _attacked(
    compared: _Comparison,
    original: Backbone,
    unlearned: Backbone,
    before: Drawn,
    budget: AttackBudget | None,
    sampler: ConceptSampler,
) -> dict[str, Any]:
    """UA under attack and its record, with the original's pictures that show the target; None where there is none."""
    shown = (compared.wanted(before) & (before.seen[compared.inside] == compared.index)).nonzero().flatten()
    under: dict[str, Drawn] = {}
    record = {"status": "not asked for" if budget is None else "no sample of the original shows the target"}
    if budget is not None and len(shown):
        asked = asking_for(before.prompts, compared.target)
        under, record = judged_attack(
            compared.judge, compared.target, original, unlearned, before, shown, asked, sampler, budget
        )
    figures: dict[str, Any] = {"attack": record}
    for name in UNDER_ATTACK:
        figures |= compared.only_target(name, under.get(name))
    return figures


def evaluate_concept(
    original: Backbone,
    unlearned: Backbone,
    judge: ConceptJudge,
    prompts: Sequence[ConceptPrompt],
    target: str,
    sampler: ConceptSampler,
    *,
    budget: AttackBudget | None = None,
    known: dict[tuple[ConceptPrompt, ...], Drawn] | None = None,
) -> ConceptEvaluation:
    """Compare two models on the plain prompts, the target's paraphrases and, with a ``budget``, an attack.

    ``known``: the original's samples by prompts, used and added to; one dictionary for one model and sampler.
    Raises `VduError` for a target that no detector knows or no plain prompt asks for.
    """
    started, compared = time.monotonic(), _Comparison(judge, target)
    plain, others = of_kind(prompts, "plain"), asking_for(of_kind(prompts, "paraphrase"), target)
    judge.domain(target)
    if not asking_for(plain, target):
        raise VduError(f"no plain prompt asks for {target!r}: its unlearning cannot be measured")
    known = {} if known is None else known
    for asked in (plain, others):
        if asked and asked not in known:
            known[asked] = judge.draw(original, asked, sampler)
    before, after = known[plain], judge.draw(unlearned, plain, sampler)
    figures = compared.plain(before, after)
    figures |= compared.only_target("paraphrase", judge.draw(unlearned, others, sampler) if others else None)
    figures |= compared.only_target("paraphrase_original", known.get(others))
    figures |= _attacked(compared, original, unlearned, before, budget, sampler)
    record = _heading(original, unlearned, judge, target, sampler) | {
        "domain": compared.inside,
        "prompts": {"plain": [p.text for p in plain], "paraphrase": [p.text for p in others]},
        "samples": len(after.pictures),
    }
    return ConceptEvaluation(record | figures | {"seconds": round(time.monotonic() - started, 2)}, before, after)


def _heading(
    original: Backbone, unlearned: Backbone, judge: ConceptJudge, target: str, sampler: ConceptSampler
) -> dict[str, Any]:
    return {
        "schema": 1,
        "original_sha256": weights_sha256(original.network),
        "unlearned_sha256": weights_sha256(unlearned.network),
        "target": target,
        "sampler": sampler.record(),
        "detectors": {
            domain: detector.record() | {"class_names": list(detector.class_names)}
            for domain, detector in judge.detectors.items()
        },
        "extractor": "object",
        **made_by(),
    }
