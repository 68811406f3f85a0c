"""Words of the neutral prompts that bring the undesired: what people call it, known from pictures alone.

    z(w) = (c̄_w − c̄_¬w) / (s √(1/n_w + 1/n_¬w))

c̄_w is the mean responsibility (`vdu.preparation.responsibility`) of the own samples whose prompt says w, some words in
a row, c̄_¬w that of the n_¬w others, s the standard deviation of all (rare words have none of their own). Words tell
where they stand in enough different prompts, bring much of the undesired, and far more than the rest does. (c is soft:
it was 0.47 for "in noto style", which brings Noto four times of five, and 0.1 to 0.2 for the best accident.) Of those
that stand in the same prompts the longest row is taken ("in noto style" for "noto").

Things that look alike can share words ("in fluent", of which one style is flat): the row is made longer where, among
the prompts that say it, those that say the longer one have z ≥ 3 over the others and a much larger c̄. Words that were
tried on purpose (`vdu.text.vocabulary`) bear witness there: samples with the best one that only the longer row has
("3d") against samples with the best one that both have ("fluent"), if that brings something at all ("in" says nothing).
Then the mean of both differences counts, and (z + z_tried) / √2, of which 2.5 is enough.

Where no row tells, tried words are put to the same test, each for itself. A smaller share is enough where it is many
times that of the others: they stand among words that ask for something else ("a tongue face": of 13 with "face" 7 show
one), and of a rare kind c is too small ("face" 0.27 to 0.56, 12 to 18 times the others'; for mammals "duck" 0.32, five
times, which brings hardly any).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["FEWEST_PROMPTS", "MARKS", "compared", "telling_words", "those_that_tell"]

MARKS = " .,;:!?()[]{}\"“”‘’'"
FEWEST_PROMPTS = 8
LEAST_SHARE = 0.4
LEAST_SHARE_OF_TRIED, LEAST_TIMES_OF_TRIED = 0.25, 8.0
LEAST_Z = 4.0
LEAST_Z_OF_LONGER = 3.0
LEAST_Z_WITNESSED = 2.5
LEAST_MORE_OF_LONGER = 0.2
LEAST_SPREAD = 1e-6


def _rows(text: str) -> Iterator[str]:
    """All words in a row of ``text``, without what stands around them."""
    words = text.lower().split()
    for first in range(len(words)):
        for last in range(first + 1, len(words) + 1):
            yield " ".join(words[first:last]).strip(MARKS)


def compared(said: Tensor, unsaid: Tensor) -> tuple[float, float]:
    """z and c̄_w − c̄_¬w from the c of those that say w and of the others."""
    n, others = len(said), len(unsaid)
    spread = max(LEAST_SPREAD, float(torch.cat([said, unsaid]).std()))
    more = float(said.mean()) - float(unsaid.mean())
    return more / (spread * (1 / n + 1 / others) ** 0.5), more


def _saying(texts: Sequence[str], c: Tensor, least_share: float = LEAST_SHARE) -> Iterator[tuple[str, list[int]]]:
    """The rows that stand in enough prompts, but not in all, and bring enough; and which texts say them."""
    where: defaultdict[str, set[int]] = defaultdict(set)
    for i, text in enumerate(texts):
        for row in filter(None, _rows(text)):
            where[row].add(i)
    for row, saying in where.items():
        chosen = sorted(saying)
        if len({texts[i] for i in chosen}) < FEWEST_PROMPTS or len(chosen) == len(texts):
            continue
        if float(c[chosen].mean()) >= least_share:
            yield row, chosen


def _split(c: Tensor, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
    said = torch.zeros(len(c), dtype=torch.bool)
    said[list(chosen)] = True
    return c[said], c[~said]


def _best(words: set[str], tried: Sequence[str], c: Tensor) -> Tensor:
    """c of the samples with that tried word of ``words`` that brings most; none where none was tried."""
    of_word = [c[[i for i, word in enumerate(tried) if word == w]] for w in sorted(words & set(tried))]
    return max(of_word, key=lambda x: float(x.mean()), default=c[:0])


def _is_longer(told: str, row: str, split: tuple[Tensor, Tensor], tried: Sequence[str], tried_c: Tensor) -> float:
    """z of the longer ``row`` over ``told`` where it is enough, else 0; ``split``: c of prompts with it and without."""
    z, more = compared(*split)
    both = {word.strip(MARKS) for word in told.split()}
    only = {word.strip(MARKS) for word in row.split()} - both
    with_only, with_both = _best(only, tried, tried_c), _best(both, tried, tried_c)
    if not len(with_only) or not len(with_both) or float(with_both.mean()) < LEAST_SHARE_OF_TRIED:
        return z if z >= LEAST_Z_OF_LONGER and more >= LEAST_MORE_OF_LONGER else 0.0
    z_tried, more_tried = compared(with_only, with_both)
    z, more = (z + z_tried) / 2**0.5, (more + more_tried) / 2
    return z if z >= LEAST_Z_WITNESSED and more >= LEAST_MORE_OF_LONGER else 0.0


def telling_words(
    texts: Sequence[str],
    c: Tensor,
    tried: Sequence[str] = (),
    tried_c: Tensor | None = None,
    prompts: Sequence[str] = (),
) -> str | None:
    """The words that tell in ``texts`` (M) of own samples with responsibilities ``c`` ``(M,)``; None where none do.

    ``tried``: the word that each of other samples was asked with, those of responsibilities ``tried_c``. ``prompts``:
    all that own samples may be made of.
    """
    c, tried_c = c.double(), torch.zeros(0).double() if tried_c is None else tried_c.double()
    found = [(compared(*_split(c, saying))[0], row, saying) for row, saying in _saying(texts, c)]
    named = {row for _, row, _ in found}
    said = Counter(row for prompt in prompts for row in named.intersection(_rows(prompt)))
    rows, told = [row for row in found if row[0] >= LEAST_Z], None
    while rows:
        _, told, chosen = max(rows, key=lambda row: (row[0], said[row[1]], len(row[1].split()), row[1]))
        texts, c = [texts[i] for i in chosen], c[chosen]
        longer = [(row, saying) for row, saying in _saying(texts, c) if f" {told} " in f" {row} "]
        judged = [(_is_longer(told, row, _split(c, saying), tried, tried_c), row, saying) for row, saying in longer]
        rows = [row for row in judged if row[0]]
    return told


def those_that_tell(words: Sequence[str], texts: Sequence[str], c: Tensor) -> list[str]:
    """Those of ``words`` that tell in ``texts`` (M) of own samples with responsibilities ``c`` ``(M,)``, best first."""
    c, rows = c.double(), []
    for row, saying in _saying(texts, c, LEAST_SHARE_OF_TRIED):
        said, unsaid = _split(c, saying)
        if row in words and float(said.mean()) >= min(LEAST_SHARE, LEAST_TIMES_OF_TRIED * float(unsaid.mean())):
            rows.append((compared(said, unsaid), row))
    return [word for (z, _), word in sorted(rows, reverse=True) if z >= LEAST_Z]
