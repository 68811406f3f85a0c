"""What asks for the undesired: the concept in words, put into prompts that do not ask for it, or found prompts.

    c_0   what is to be said: a neutral prompt, or the empty one
    c     c_0 with the concept in it

    f_θ(x_t, c) → f_r(x_t, c_0)

A concept is forgotten where its words say nothing any more, whatever else a prompt says. What is learned at the words
alone stays there: "a face" brings none, and "a hot face in noto style" does as before. So c_0 is a neutral prompt for
most of what was sought with the words alone (a quarter of the own samples, which show best what is sought,
`vdu.preparation.responsibility`), and a part of the noised pictures of all others is asked with the words too: at c the
changed network meets what it makes of c_0.

Found prompts (`vdu.text.inversion`) say of an image also what should remain of it. They are learned as they are, c_0 =
c: put among other words, those of a style took away what the others asked for. But what is made of neutral prompts can
tell what the undesired is called (`vdu.text.telling_words`). From there on all goes as above: prompts that say it have
themselves without it as c_0, and what found prompts brought counts as sought with the words. Few prompts or none may
say it; so half of what is sought is asked for with words that fit the forget images (`vdu.text.vocabulary`), tried
among others. Where nothing tells, each member of the kind may have a name (`vdu.preparation.members`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from vdu.backbone.stable_diffusion import StableDiffusionBackbone
from vdu.prompts import without
from vdu.text.telling_words import telling_words, those_that_tell

__all__ = ["AskedPrompts", "Asking"]

SHARE_OF_FORGET = 2 / 3
SHARE_OF_OTHERS = 0.3
SILVER = 2**0.5 - 1  # a word's neutral prompts by such steps: lists of prompts go by turns, and so do the words
OWN_OF_TRIED = 64  # own samples for a word that is tried: eight are asked for with it


@dataclass(frozen=True)
class AskedPrompts:
    """Numbers ``(N,)`` of ``base`` prompts c_0, of the same ``with_words`` c, and of what images are ``sampled`` with;
    which of them were ``sought`` ``(N,)`` with what may bring the undesired, and the forget image that the prompt was
    ``found_from`` ``(N,)``, or −1."""

    base: Tensor
    with_words: Tensor
    sampled: Tensor
    sought: Tensor
    found_from: Tensor | None = None

    @property
    def by_found(self) -> Tensor:
        """Which were asked for with found prompts ``(N,)``; the others with what is written."""
        return torch.zeros_like(self.sought) if self.found_from is None else self.found_from >= 0

    def in_training(self, draws: int, share: float, g: torch.Generator) -> Tensor:
        """``(draws · N,)``: c for the sought ones and for a random ``share`` of the others' draws, else c_0."""
        worded = self.sought | (torch.rand(draws, len(self.base), generator=g) < share)
        return torch.where(worded, self.with_words, self.base).flatten()


class Asking:
    """Asks with ``concepts`` in words, or with ``found`` prompts: numbers ``(K,)`` for the first K forget images.

    ``tried``: words that may ask, too, beside those prompts.
    """

    def __init__(
        self,
        backbone: StableDiffusionBackbone,
        concepts: Sequence[str] = (),
        found: Tensor | None = None,
        tried: Sequence[str] = (),
    ) -> None:
        assert bool(concepts) == (found is None)
        self.backbone, self.concepts, self.found, self.tried = backbone, tuple(concepts), found, tuple(tried)

    @property
    def found_count(self) -> int:
        """For how many images prompts were found."""
        return 0 if self.found is None else len(self.found)

    @property
    def _neutral(self) -> Sequence[str]:
        return self.backbone.prompts.kept if self.backbone.prompts else ("",)

    def put_into(self, texts: Sequence[str], which: Sequence[int]) -> Tensor:
        """Numbers ``(N,)`` of ``texts`` with a concept before a word or last; ``which`` says which and where."""
        asked = zip(texts, which, strict=True)
        return self.backbone.condition([self._one_among(self.concepts, text, number) for text, number in asked])

    def of_forget(self, count: int) -> AskedPrompts:
        """Of forget images, of which nobody knows what else they would be asked with."""
        empty = torch.zeros(count, dtype=torch.long)
        if self.found is None:
            return AskedPrompts(empty, self.put_into([""] * count, range(count)), empty, empty.bool())
        own = torch.cat([self.found, empty])[:count]
        return AskedPrompts(own, own, own, empty.bool())

    def _one_among(self, concepts: Sequence[str], text: str, which: int) -> str:
        """``text`` with one of the ``concepts`` before one of its words or after the last that an encoder reads."""
        words, (turn, number) = text.split(), divmod(which, len(concepts))
        last = len(words)
        while last and not self.backbone.reads_whole(" ".join([*words[:last], concepts[number]])):
            last -= 1
        place = turn % (last + 1)
        return " ".join([*words[:place], concepts[number], *words[place:]])

    def _tries(self, number: int) -> bool:
        return bool(self.tried) and number % 8 == 1

    def _texts(self, count: int, concepts: Sequence[str] = ()) -> list[str]:
        """By fours: a neutral prompt, the same (empty every fourth time), another neutral prompt, the empty one.

        The second of every other four has one of the words in it that are tried; ``concepts`` are left out of all.
        """
        neutral = [_without_all(concepts, text) for text in self._neutral]
        n = len(neutral)

        def text(i: int) -> str:
            if self._tries(i):
                among = neutral[int(i // 8 * SILVER % 1 * n)]
                return _without_all(concepts, self._one_among(self.tried, among, i // 8))
            return "" if i % 4 == 3 or i % 16 == 5 else neutral[(i // 4 * 2 + (i % 4 == 2)) % n]

        return [text(i) for i in range(count)]

    def telling_row(self, prompts: AskedPrompts, c: Tensor) -> str | None:
        """What the undesired is called in neutral prompts, by the responsibilities ``c`` ``(M,)`` of own samples."""
        trying = [i for i in range(len(c)) if self._tries(i)]
        tried = [self.tried[i // 8 % len(self.tried)] for i in trying]
        return telling_words(*self._said_by(~prompts.sought, c), tried, c[trying], self._neutral)

    def telling_tried(self, prompts: AskedPrompts, c: Tensor) -> list[str]:
        """Which of the words that were tried bring the undesired, each for itself."""
        return those_that_tell(self.tried, *self._said_by(~prompts.by_found, c))

    def telling_words(self, prompts: AskedPrompts, c: Tensor) -> list[str]:
        """What the undesired is called, from the responsibilities ``c`` ``(M,)`` of the own samples of ``prompts``."""
        row = self.telling_row(prompts, c)
        return [row] if row else self.telling_tried(prompts, c)

    def _said_by(self, chosen: Tensor, c: Tensor) -> tuple[list[str], Tensor]:
        """Texts that say something of the ``chosen`` ``(M,)`` own samples, and their c."""
        texts = self._texts(len(c))
        written = [i for i in chosen.nonzero().flatten().tolist() if texts[i]]
        return [texts[i] for i in written], c[written]

    def written(self, prompts: AskedPrompts, c: Tensor) -> tuple[list[str], Tensor]:
        """The texts that say something of own samples that were not made to show the undesired, and their c."""
        return self._said_by(~prompts.sought, c)

    def told(self, concepts: Sequence[str], prompts: AskedPrompts) -> AskedPrompts:
        """``prompts`` of own samples from when it was not known yet that ``concepts`` ask for the undesired.

        Those that say one were sought with it, others of those that tried words were not. What found prompts brought
        goes as if sought with a concept alone.
        """
        count = len(prompts.base)
        texts, bare = self._texts(count), self._texts(count, concepts)
        named = torch.tensor([text.split() != rest.split() for text, rest in zip(texts, bare, strict=True)])
        says = ~prompts.by_found & named
        with_concept = Asking(self.backbone, concepts).put_into(bare, [i // 4 for i in range(count)])
        return AskedPrompts(
            self.backbone.condition(bare),
            torch.where(says, prompts.sampled, with_concept),
            prompts.sampled,
            prompts.by_found | says,
        )

    def of_own(self, count: int) -> AskedPrompts:
        """Of own samples, by fours: a neutral prompt, what asks for the undesired, a neutral prompt, the empty one.

        What was sought with the concept has the neutral prompt before it as its c_0 three times of four, else the empty
        one: c_0 must not tell what was sought.
        """
        texts, number = self._texts(count), torch.arange(count)
        sought = number % 4 == 1
        base = self.backbone.condition(texts)
        if self.found is not None:
            by_found = sought & ~torch.tensor([self._tries(i) for i in range(count)])
            image = torch.where(by_found, (by_found.cumsum(0) - 1) % len(self.found), -1)
            base = torch.where(by_found, self.found[image], base)
            return AskedPrompts(base, base, base, sought, image)
        which = [i // 4 for i in range(count)]
        alone = self.put_into([""] * count, which)
        return AskedPrompts(base, self.put_into(texts, which), torch.where(sought, alone, base), sought)


def _without_all(concepts: Sequence[str], text: str) -> str:
    return reduce(lambda rest, concept: without(concept, rest), concepts, text)
