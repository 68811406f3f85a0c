"""The prompts that a text-to-image model is judged by: each asks for a style, mostly for an object too, in known words.

A CSV file with the columns prompt, style, object, kind: class names of the two detectors (empty: none of its classes),
and ``plain`` (as in training) or ``paraphrase`` (other words for the same).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vdu.errors import VduError, nearest

__all__ = ["DOMAINS", "KINDS", "ConceptPrompt", "asking_for", "of_kind", "read_concept_prompts", "spread"]

DOMAINS = ("style", "object")
KINDS = ("plain", "paraphrase")
COLUMNS = ("prompt", *DOMAINS, "kind")


@dataclass(frozen=True)
class ConceptPrompt:
    """``style`` and ``object``: the class names asked for; empty where the words name no class of that domain."""

    text: str
    style: str
    object: str
    kind: str = "plain"

    def asks(self, domain: str) -> str:
        """The class of ``domain`` that is asked for."""
        return self.style if domain == "style" else self.object


def of_kind(prompts: Iterable[ConceptPrompt], kind: str) -> tuple[ConceptPrompt, ...]:
    """Those of one kind, in order."""
    return tuple(prompt for prompt in prompts if prompt.kind == kind)


def asking_for(prompts: Iterable[ConceptPrompt], target: str) -> tuple[ConceptPrompt, ...]:
    """Those that ask for the class ``target``; style and object classes have no name in common."""
    return tuple(prompt for prompt in prompts if target in (prompt.style, prompt.object))


def spread(numbers: Sequence[int], count: int) -> list[int]:
    """``count`` of ``numbers``, evenly spread; all where there are fewer."""
    taken = min(count, len(numbers))
    return [numbers[round(i * (len(numbers) - 1) / max(1, taken - 1))] for i in range(taken)]


def _prompt(path: Path, number: int, row: dict[str, str | None], classes: Mapping[str, Sequence[str]]) -> ConceptPrompt:
    text, style, thing, kind = ((row[name] or "").strip() for name in COLUMNS)
    said = f"{path}: row {number} has"
    if not text:
        raise VduError(f"{said} no prompt: write one, or take the row out")
    if kind not in KINDS:
        raise VduError(f"{said} the kind {kind!r}: {nearest(kind, KINDS)}")
    for domain, name in zip(DOMAINS, (style, thing), strict=True):
        if name and name not in classes[domain]:
            raise VduError(f"{said} the {domain} {name!r}, no class of its detector: {nearest(name, classes[domain])}")
    return ConceptPrompt(text, style, thing, kind)


def read_concept_prompts(path: Path, classes: Mapping[str, Sequence[str]]) -> tuple[ConceptPrompt, ...]:
    """Prompts of a CSV file; ``classes``: the class names of each domain. Raises `VduError` for whatever is amiss."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise VduError(f"cannot read the prompts {path} ({type(error).__name__}): give a CSV file") from error
    if not rows or any(name not in rows[0] for name in COLUMNS):
        raise VduError(f"{path} needs the columns {', '.join(COLUMNS)} and at least one row")
    prompts = tuple(_prompt(path, number, row, classes) for number, row in enumerate(rows, 2))
    if not of_kind(prompts, "plain"):
        raise VduError(f"{path} has no prompt of the kind plain: UA, IRA and CRA are measured on those")
    return prompts
