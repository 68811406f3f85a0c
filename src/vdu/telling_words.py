"""Words of the neutral prompts that bring the undesired: what people call it, known from pictures alone.

    z(w) = (c̄_w − c̄_¬w) / (s √(1/n_w + 1/n_¬w))

c̄_w is the mean responsibility (`vdu.responsibility`) of the own samples whose prompt says w, some words in a row,
c̄_¬w that of the n_¬w others, s the standard deviation of all (rare words have none of their own). Words tell where
they stand in enough prompts, bring the undesired oftener than not, and far oftener than the rest does. Of those that
stand in the same prompts the longest row is taken ("in noto style" for "noto").
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["telling_words"]

LONGEST = 5
FEWEST_PROMPTS = 8
LEAST_SHARE = 0.5
LEAST_Z = 4.0


def _rows(text: str) -> Iterator[str]:
    words = text.lower().split()
    for first in range(len(words)):
        for last in range(first + 1, min(first + LONGEST, len(words)) + 1):
            yield " ".join(words[first:last])


def telling_words(texts: Sequence[str], c: Tensor) -> str | None:
    """The words of highest z in ``texts`` (M) of own samples with responsibilities ``c`` ``(M,)``.

    None where none tell.
    """
    where: defaultdict[str, set[int]] = defaultdict(set)
    for i, text in enumerate(texts):
        for row in _rows(text):
            where[row].add(i)
    best: tuple[float, int, str] | None = None
    for row, saying in where.items():
        others = len(texts) - len(saying)
        if len(saying) < FEWEST_PROMPTS or not others:
            continue
        said = torch.zeros(len(texts), dtype=torch.bool)
        said[list(saying)] = True
        share, rest = float(c[said].mean()), float(c[~said].mean())
        z = (share - rest) / max(1e-12, float(c.std()) * (1 / len(saying) + 1 / others) ** 0.5)
        if share >= LEAST_SHARE and z >= LEAST_Z:
            best = max(best or (0.0, 0, ""), (z, len(row.split()), row))
    return best[2] if best else None
