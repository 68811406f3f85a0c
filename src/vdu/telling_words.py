"""Words of the neutral prompts that bring the undesired: what people call it, known from pictures alone.

    z(w) = (c̄_w − c̄_¬w) / (s √(1/n_w + 1/n_¬w))

c̄_w is the mean responsibility (`vdu.responsibility`) of the own samples whose prompt says w, some words in a row,
c̄_¬w that of the n_¬w others, s the standard deviation of all (rare words have none of their own). Words tell where
they stand in enough different prompts, bring much of the undesired, and far more than the rest does. (c is soft: it was
0.47 for "in noto style", which brings Noto four times of five, and 0.1 to 0.2 for the best accident.) Of
those that stand in the same prompts the longest row is taken ("in noto style" for "noto").

Things that look alike can share words ("in fluent", of which one style is flat): the row is made longer where, among
the prompts that say it, those that say the longer one have z ≥ 3 over the others and a much larger c̄.

Where no row tells, words that were tried on purpose (`vdu.vocabulary`) are put to the same test, each for itself, with
a smaller share: they stand among others, which ask for something else ("a tongue face": of 13 with "face" 7 show one).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["MARKS", "telling_words", "those_that_tell"]

MARKS = " .,;:!?()[]{}\"“”‘’'"
FEWEST_PROMPTS = 8
LEAST_SHARE = 0.4
LEAST_SHARE_OF_TRIED = 0.25
LEAST_Z = 4.0
LEAST_Z_OF_LONGER = 3.0
LEAST_MORE_OF_LONGER = 0.2
LEAST_SPREAD = 1e-6


def _rows(text: str) -> Iterator[str]:
    """All words in a row of ``text``, without what stands around them."""
    words = text.lower().split()
    for first in range(len(words)):
        for last in range(first + 1, len(words) + 1):
            yield " ".join(words[first:last]).strip(MARKS)


def _tested(
    texts: Sequence[str], c: Tensor, least_share: float = LEAST_SHARE
) -> Iterator[tuple[float, float, str, list[int]]]:
    """z, c̄_w − c̄_¬w, the row and which texts say it, of all rows that stand in enough prompts and bring enough."""
    where: defaultdict[str, set[int]] = defaultdict(set)
    for i, text in enumerate(texts):
        for row in filter(None, _rows(text)):
            where[row].add(i)
    spread = max(LEAST_SPREAD, float(c.std())) if len(c) > 1 else LEAST_SPREAD
    for row, saying in where.items():
        others = len(texts) - len(saying)
        if len({texts[i] for i in saying}) < FEWEST_PROMPTS or not others:
            continue
        said = torch.zeros(len(texts), dtype=torch.bool)
        said[list(saying)] = True
        share = float(c[said].mean())
        if share >= least_share:
            more = share - float(c[~said].mean())
            yield more / (spread * (1 / len(saying) + 1 / others) ** 0.5), more, row, sorted(saying)


def telling_words(texts: Sequence[str], c: Tensor) -> str | None:
    """The words that tell in ``texts`` (M) of own samples with responsibilities ``c`` ``(M,)``; None where none do."""
    told, c = None, c.double()
    rows = [row for row in _tested(texts, c) if row[0] >= LEAST_Z]
    while rows:
        _, _, told, saying = max(rows, key=lambda row: (row[0], len(row[2].split()), row[2]))
        texts, c = [texts[i] for i in saying], c[saying]
        rows = [
            (z, more, row, saying)
            for z, more, row, saying in _tested(texts, c)
            if z >= LEAST_Z_OF_LONGER and more >= LEAST_MORE_OF_LONGER and f" {told} " in f" {row} "
        ]
    return told


def those_that_tell(words: Sequence[str], texts: Sequence[str], c: Tensor) -> list[str]:
    """Those of ``words`` that tell in ``texts`` (M) of own samples with responsibilities ``c`` ``(M,)``, best first."""
    tested = _tested(texts, c.double(), LEAST_SHARE_OF_TRIED)
    rows = [row for row in tested if row[0] >= LEAST_Z and row[2] in words]
    return [word for *_, word, _ in sorted(rows, reverse=True)]
