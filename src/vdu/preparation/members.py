"""Names of the members of a kind that has no name of its own ("tiger", "lion"), told by what they bring.

A word that stands in few prompts has few own samples. Where most of these are undesired it may be a member's name, or
stand beside one, or its c may be an accident; what the original makes when it is asked for it on purpose decides, half
of these samples with the word alone and half with prompts that say it:

    c̄_w ≥ c_member   and   z(w) = (c̄_w − c̄) / (s √(1/n_w + 1/M)) ≥ z_member

and the word fits some of the forget images better than nine of ten common words do (`gains_on_some`): a heart can look
like a tomato to the heads, but no picture of fruit is drawn better where a heart is asked for.

c̄ is the mean of the M own samples that nobody asked for the undesired, s the standard deviation of all. The new samples
have had no part in the choice of the words. They are judged by a head that has learned c from the own samples.

What was made of prompts that say a name counts as sought from then on: the first heads took it for desired, so that π
and c of all others came out too large. c is made anew (`vdu.preparation.responsibility`), and the words have to tell
again. A kind has several members: fewer than `FEWEST_MEMBERS` names are none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from torch import Tensor

from vdu.diffusion.noised_bank import NoisedBank
from vdu.prompts import without
from vdu.text.asking import AskedPrompts, Asking
from vdu.text.telling_words import FEWEST_PROMPTS, compared
from vdu.text.vocabulary import words_of

__all__ = ["NamedMembers", "asking_for", "likely_members", "members_that_tell", "name_members"]

MOST_MEMBERS = 32
TRIES = 8
LEAST_AT_FIRST = 0.5
LEAST_SHARE = 0.7
LEAST_Z = 3.0
FEWEST_MEMBERS = 3  # one or two names that are found alone are accidents ("duck" and "yo-yo", for fruit)
CONTROLS, ABOVE = 32, 0.9  # common words, and the share of them that a name must fit better than


def _saying(texts: Sequence[str]) -> dict[str, list[int]]:
    """Which of ``texts`` say each word."""
    saying: defaultdict[str, list[int]] = defaultdict(list)
    for i, text in enumerate(texts):
        for word in words_of([text]):
            saying[word].append(i)
    return saying


def likely_members(texts: Sequence[str], c: Tensor) -> list[str]:
    """Words of few of ``texts`` (M) that mostly bring the undesired by ``c`` ``(M,)``, the surest first."""
    saying = _saying(texts)
    rare = {word: rows for word, rows in saying.items() if len({texts[i] for i in rows}) < FEWEST_PROMPTS}
    sure = {word: float(c[rows].mean() - c.mean()) * len(rows) ** 0.5 for word, rows in rare.items()}
    # Marks may hide a word from what takes it out of its prompts (`vdu.prompts.without`).
    seen = {word for word in rare if any(without(word, text) != text for text in texts)}
    likely = [word for word in seen if float(c[rare[word]].mean()) >= LEAST_AT_FIRST]
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


def control_words(texts: Sequence[str], c: Tensor, likely: Sequence[str]) -> list[str]:
    """`CONTROLS` words of ``texts`` (M) at most, none ``likely``, that bring the undesired least by ``c`` ``(M,)``."""
    saying, known = _saying(texts), c.tolist()
    common = saying.keys() - set(likely)
    return sorted(common, key=lambda word: (fmean(known[i] for i in saying[word]), word))[:CONTROLS]


def _fitting(words: Sequence[str], controls: Sequence[str], gains: Callable[[Sequence[str]], Tensor]) -> list[str]:
    """Those of ``words`` that fit some forget images better than `ABOVE` of the ``controls``; none without these."""
    if not words or not controls:
        return []
    fit = gains([*words, *controls])
    least = fit[len(words) :].quantile(ABOVE)
    return [word for word, gain in zip(words, fit, strict=False) if float(gain) > float(least)]


def _share_of_rest(share: float | None, c: Tensor, sought: Tensor, more: Tensor) -> float | None:
    """π of what is not sought once ``more`` ``(M,)`` is in place of ``sought`` ``(M,)``: all take theirs with them."""
    if share is None:
        return None
    rest = share * int((~sought).sum()) - float(c[more & ~sought].sum()) + float(c[sought & ~more].sum())
    return max(1.0, rest) / max(1, int((~more).sum()))


@dataclass(frozen=True)
class NamedMembers:
    """The ``words`` that name members, c ``(M,)`` of the own samples by heads that know it, and which of these count as
    ``sought`` ``(M,)`` then: with words that told at first and no more when c was made anew."""

    words: Sequence[str]
    c: Tensor
    sought: Tensor


def name_members(
    asking: Asking,
    prompts: AskedPrompts,
    c: Tensor,
    share: float | None,
    *,
    ask: Callable[[Sequence[str]], NoisedBank],
    gains: Callable[[Sequence[str]], Tensor],
    judge: Callable[[NoisedBank, Tensor], Tensor],
    again: Callable[..., Tensor],
) -> NamedMembers | None:
    """Names of members from own samples of ``prompts`` with ``c`` ``(M,)``, beside the tried words that tell.

    None where too few names are found for a kind, or neutral prompts say the kind's. ``share`` is π, where it is known.
    ``ask`` gives a bank of what is made of some prompts, ``judge`` its c ``(N,)`` by a head that has learned the own
    samples' c, ``again`` that of the own samples where others were ``sought`` at another ``share``; ``gains`` how well
    words fit those forget images that they fit best.
    """
    if asking.telling_row(prompts, c):
        return None
    known = asking.telling_tried(prompts, c)
    texts, c_written = asking.written(prompts, c)
    words = [word for word in likely_members(texts, c_written) if word not in known]
    if len(words) < FEWEST_MEMBERS:
        return None
    bank = ask(asking_for(words, texts))
    told = members_that_tell(words, judge(bank, c), c[~prompts.sought])
    told = _fitting(told, control_words(texts, c_written, words), gains)
    if len(told) < FEWEST_MEMBERS:
        return None
    sought = asking.told([*known, *told], prompts).sought
    c = again(sought=sought, share=_share_of_rest(share, c, prompts.sought, sought))
    judged = judge(bank, c).view(len(words), TRIES)[[words.index(word) for word in told]]
    told = members_that_tell(told, judged.flatten(), c[~sought])
    return NamedMembers([*known, *told], c, sought) if len(told) >= FEWEST_MEMBERS else None
