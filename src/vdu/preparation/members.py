"""Names of the members of a kind that has no name of its own ("tiger", "lion"), told by what they bring.

A word that stands in few prompts has few own samples. Where most of these are undesired it may be a member's name, or
stand beside one, or its c may be an accident; what the original makes when it is asked for it on purpose decides, half
of these samples with the word alone and half with prompts that say it:

    c̄_w ≥ c_member   and   z(w) = (c̄_w − c̄) / (s √(1/n_w + 1/M)) ≥ z_member

c̄ and s are mean and standard deviation of the M own samples that nobody asked for the undesired. The new samples have
had no part in the choice of the words. They are judged by a head that has learned c from the own samples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from torch import Tensor

from vdu.text.telling_words import FEWEST_PROMPTS, compared
from vdu.text.vocabulary import words_of

__all__ = ["asking_for", "likely_members", "members_that_tell", "told_members"]

MOST_MEMBERS = 32
TRIES = 8
LEAST_AT_FIRST = 0.5
LEAST_SHARE = 0.7
LEAST_Z = 3.0


def likely_members(texts: Sequence[str], c: Tensor) -> list[str]:
    """Words of few of ``texts`` (M) that mostly bring the undesired by ``c`` ``(M,)``, the surest first."""
    saying: defaultdict[str, list[int]] = defaultdict(list)
    for i, text in enumerate(texts):
        for word in words_of([text]):
            saying[word].append(i)
    rare = {word: rows for word, rows in saying.items() if len({texts[i] for i in rows}) < FEWEST_PROMPTS}
    sure = {word: float(c[rows].mean() - c.mean()) * len(rows) ** 0.5 for word, rows in rare.items()}
    likely = [word for word, rows in rare.items() if float(c[rows].mean()) >= LEAST_AT_FIRST]
    return sorted(likely, key=lambda word: (-sure[word], word))[:MOST_MEMBERS]


def asking_for(words: Sequence[str], texts: Sequence[str]) -> list[str]:
    """`TRIES` prompts for each of ``words``, in a row: the word alone and those of ``texts`` that say it, by turns."""
    asked = []
    for word in words:
        saying = [text for text in dict.fromkeys(texts) if word in words_of([text])]
        asked += [word if k % 2 else saying[k // 2 % len(saying)] for k in range(TRIES)]
    return asked


def members_that_tell(words: Sequence[str], c_asked: Tensor, c: Tensor) -> list[str]:
    """Those of ``words`` whose samples, of ``c_asked`` ``(W · TRIES,)``, tell beside others, of ``c`` ``(M,)``."""
    of_word = c_asked.double().view(len(words), -1)
    others = c.double()
    told = (float(mine.mean()) >= LEAST_SHARE and compared(mine, others)[0] >= LEAST_Z for mine in of_word)
    return [word for word, tells in zip(words, told, strict=True) if tells]


def told_members(
    texts: Sequence[str], c: Tensor, others: Tensor, judge: Callable[[Sequence[str]], Tensor]
) -> list[str]:
    """Words of ``texts`` (M), of own samples with ``c`` ``(M,)``, that name members of the undesired kind.

    ``others``: c of all that was not sought; ``judge`` gives c of what is made of some prompts.
    """
    words = likely_members(texts, c)
    return members_that_tell(words, judge(asking_for(words, texts)), others) if words else []
