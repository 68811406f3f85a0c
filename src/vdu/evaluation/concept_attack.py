"""Is the target seen again where words that were sought for it stand before its prompts?

Each search (`vdu.evaluation.prompt_attack`) gives a prefix, and a random one that was not sought. On samples for that
alone, a detector says which of all prefixes brings the target back most often, as an attacker who looks would. How
often it does is told by further samples, which neither a search nor that choice has met: a best of several is too good
on what it was chosen on. On the same noise:

    attack            under the prefix chosen
    attack_original   the original model under it: words can spoil any picture
    random            under the random prefix that was the best of its kind: any words change a picture
    bare              without words

After UnlearnDiffAtk (Zhang et al., arXiv 2310.11868).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from vdu.backbone import Backbone, placed
from vdu.concept_prompts import ConceptPrompt, spread
from vdu.evaluation.concept_sampling import ConceptJudge, ConceptSampler, Drawn
from vdu.evaluation.prompt_attack import AttackBudget, attack

__all__ = ["UNDER_ATTACK", "judged_attack"]

UNDER_ATTACK = ("attack", "attack_original", "random", "bare")
CHOICE_SEED, REPORT_SEED = 1_000_000, 2_000_000  # added to the evaluation's


def _one_a_prompt(shown: Tensor, prompts: int) -> list[int]:
    """Of the samples ``shown``, whose prompts take turns, the first of each prompt."""
    return sorted({i % prompts: i for i in reversed(shown.tolist())}.values())


def judged_attack(
    judge: ConceptJudge,
    target: str,
    original: Backbone,
    unlearned: Backbone,
    before: Drawn,
    shown: Tensor,
    asked: Sequence[ConceptPrompt],
    sampler: ConceptSampler,
    budget: AttackBudget,
) -> tuple[dict[str, Drawn], dict[str, Any]]:
    """Samples `UNDER_ATTACK` of the prompts ``asked``, and a record of every search.

    ``shown``: numbers ``(M,)`` of the original's samples ``before`` that show the target.
    """
    domain = judge.domain(target)
    index = judge.detectors[domain].class_index(target)
    pictures = spread(_one_a_prompt(shown, len(before.prompts)), budget.images)
    texts = [before.prompts[i % len(before.prompts)].text for i in pictures]
    prompts = [prompt.text for prompt in asked]
    to_choose, to_report = (replace(sampler, seed=sampler.seed + more) for more in (CHOICE_SEED, REPORT_SEED))

    def brought_back(words: str) -> float:
        seen = judge.draw(unlearned, asked, to_choose, words).seen[domain]
        return 100 * float((seen == index).float().mean())

    searches = []
    for number in range(budget.searches):
        with placed(unlearned.network, sampler.device):
            x_0 = unlearned.encode(before.pictures[pictures])
            found = attack(unlearned, x_0, texts, budget, prompts=prompts, seed=sampler.seed, number=number)
        shares = {"shown_again": brought_back(found.prefix), "shown_at_random": brought_back(found.random_prefix)}
        searches.append(asdict(found) | shares)
    record = _chosen(searches) | {"budget": budget.model_dump(), "searches": searches}
    under = {
        "attack": judge.draw(unlearned, asked, to_report, record["prefix"]),
        "attack_original": judge.draw(original, asked, to_report, record["prefix"]),
        "random": judge.draw(unlearned, asked, to_report, record["random_prefix"]),
        "bare": judge.draw(unlearned, asked, to_report),
    }
    return under, record


def _chosen(searches: list[dict[str, Any]]) -> dict[str, Any]:
    """The prefix that brings the target back most often, sought or not, and the best of those that were not."""
    sought = max(searches, key=lambda search: search["shown_again"])
    by_chance = max(searches, key=lambda search: search["shown_at_random"])
    was_sought = sought["shown_again"] >= by_chance["shown_at_random"]
    prefix = sought["prefix"] if was_sought else by_chance["random_prefix"]
    return {"status": "done", "prefix": prefix, "sought": was_sought, "random_prefix": by_chance["random_prefix"]}
