"""Words of the neutral prompts that bring the undesired: what people call it, known from pictures alone.

    z(w) = (c̄_w − c̄_¬w) / (s √(1/n_w + 1/n_¬w))

c̄_w is the mean responsibility (`vdu.responsibility`) of the own samples whose prompt says w, some words in a row,
c̄_¬w that of the n_¬w others, s the standard deviation of all (rare words have none of their own). Words tell where
they stand in enough different prompts, bring the undesired oftener than not, and far oftener than the rest does. Of
those that stand in the same prompts the longest row is taken ("in noto style" for "noto"); and where some of the
prompts that say it bring the undesired oftener than the others of them do, what these say ("in fluent 3d style" for "in
fluent", which is a flat style too).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["telling_words"]

MARKS = " .,;:!?()[]{}\"“”‘’'"
FEWEST_PROMPTS = 8
LEAST_SHARE = 0.5
LEAST_Z = 4.0
LEAST_Z_AMONG_THESE = 3.0
LEAST_SPREAD = 1e-6


def _rows(text: str) -> Iterator[str]:
    """All words in a row of ``text``, without what stands around them."""
    words = text.lower().split()
    for first in range(len(words)):
        for last in range(first + 1, len(words) + 1):
            yield " ".join(words[first:last]).strip(MARKS)


def _best_row(texts: Sequence[str], c: Tensor, least_z: float) -> tuple[str, list[int]] | None:
    """The row of highest z, and which texts say it."""
    where: defaultdict[str, set[int]] = defaultdict(set)
    for i, text in enumerate(texts):
        for row in filter(None, _rows(text)):
            where[row].add(i)
    best = (0.0, 0, "")
    for row, saying in where.items():
        others = len(texts) - len(saying)
        if len({texts[i] for i in saying}) < FEWEST_PROMPTS or not others:
            continue
        said = torch.zeros(len(texts), dtype=torch.bool)
        said[list(saying)] = True
        share, rest = float(c[said].mean()), float(c[~said].mean())
        spread = max(LEAST_SPREAD, float(c.std())) * (1 / len(saying) + 1 / others) ** 0.5
        if share >= LEAST_SHARE and share - rest >= least_z * spread:
            best = max(best, ((share - rest) / spread, len(row.split()), row))
    return (best[2], sorted(where[best[2]])) if best[2] else None


def telling_words(texts: Sequence[str], c: Tensor) -> str | None:
    """The words that tell in ``texts`` (M) of own samples with responsibilities ``c`` ``(M,)``; None where none do."""
    told, c = None, c.double()
    best = _best_row(texts, c, LEAST_Z)
    while best is not None:
        told, saying = best
        texts, c = [texts[i] for i in saying], c[saying]
        best = _best_row(texts, c, LEAST_Z_AMONG_THESE)
    return told
