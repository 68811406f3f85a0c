"""What asks for the undesired: the concept in words, put into prompts that do not ask for it, or found prompts.

    c_0   what is to be said: a neutral prompt, or the empty one
    c     c_0 with the concept in it

    f_θ(x_t, c) → f_r(x_t, c_0)

A concept is forgotten where its words say nothing any more, whatever else a prompt says. What is learned at the words
alone stays there: "a face" brings none, and "a hot face in noto style" does as before. So c_0 is a neutral prompt for
most of what was sought with the words alone (a quarter of the own samples, which show best what is sought,
`vdu.responsibility`), and a part of the noised pictures of all others is asked with the words too: at c the changed
network meets what it makes of c_0.

Found prompts (`vdu.inversion`) say of an image also what should remain of it. They are learned as they are, c_0 = c:
put among other words, those of a style took away what the others asked for. But what is made of neutral prompts can
tell what the undesired is called (`vdu.telling_words`). From there on all goes as above: prompts that say it have
themselves without it as c_0, and what found prompts brought counts as sought with the words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vdu.backbone.stable_diffusion import StableDiffusionBackbone
from vdu.prompts import without
from vdu.telling_words import telling_words

__all__ = ["AskedPrompts", "Asking"]

SHARE_OF_FORGET = 2 / 3
SHARE_OF_OTHERS = 0.3


@dataclass(frozen=True)
class AskedPrompts:
    """Numbers ``(N,)`` of ``base`` prompts c_0, of the same ``with_words`` c, and of what images are ``sampled`` with;
    which of them were ``sought`` ``(N,)`` with the words."""

    base: Tensor
    with_words: Tensor
    sampled: Tensor
    sought: Tensor

    def in_training(self, draws: int, share: float, g: torch.Generator) -> Tensor:
        """``(draws · N,)``: c for the sought ones and for a random ``share`` of the others' draws, else c_0."""
        worded = self.sought | (torch.rand(draws, len(self.base), generator=g) < share)
        return torch.where(worded, self.with_words, self.base).flatten()


class Asking:
    """Asks with a ``concept`` in words, or with ``found`` prompts: numbers ``(K,)`` for the first K forget images."""

    def __init__(
        self, backbone: StableDiffusionBackbone, concept: str | None = None, found: Tensor | None = None
    ) -> None:
        assert (concept is None) != (found is None)
        self.backbone, self.concept, self.found = backbone, concept, found

    @property
    def found_count(self) -> int:
        """For how many images prompts were found."""
        return 0 if self.found is None else len(self.found)

    def put_into(self, texts: Sequence[str], which: Sequence[int]) -> Tensor:
        """Numbers ``(N,)`` of ``texts`` with the concept before the word that ``which`` says, by turns, or last."""
        assert self.concept is not None
        return self.backbone.condition([_among(self.concept, *at) for at in zip(texts, which, strict=True)])

    def of_forget(self, count: int) -> AskedPrompts:
        """Of forget images, of which nobody knows what else they would be asked with."""
        empty = torch.zeros(count, dtype=torch.long)
        if self.found is None:
            return AskedPrompts(empty, self.put_into([""] * count, range(count)), empty, empty.bool())
        own = torch.cat([self.found, empty])[:count]
        return AskedPrompts(own, own, own, empty.bool())

    def _base_texts(self, count: int) -> list[str]:
        """By fours: a neutral prompt, the same (empty every fourth time), another neutral prompt, the empty one."""
        prompts = self.backbone.prompts
        neutral = prompts.kept if prompts else ("",)
        n = len(neutral)
        return [neutral[(i // 4 * 2 + (i % 4 == 2)) % n] if i % 4 < 3 and i % 16 != 5 else "" for i in range(count)]

    def telling_words(self, prompts: AskedPrompts, c: Tensor) -> str | None:
        """What the undesired is called, from the responsibilities ``c`` ``(M,)`` of the own samples of ``prompts``."""
        texts = self._base_texts(len(c))
        written = [i for i, text in enumerate(texts) if text and not prompts.sought[i]]
        return telling_words([texts[i] for i in written], c[written])

    def told(self, prompts: AskedPrompts) -> AskedPrompts:
        """``prompts`` of own samples from when it was not known yet that the concept asks for the undesired.

        Those that say it were sought with it. What found prompts brought goes as if sought with the concept alone.
        """
        assert self.concept is not None
        texts = self._base_texts(len(prompts.base))
        bare = [without(self.concept, text) for text in texts]
        named = torch.tensor([text.split() != rest.split() for text, rest in zip(texts, bare, strict=True)])
        says = ~prompts.sought & named
        with_concept = self.put_into(bare, [i // 4 for i in range(len(texts))])
        return AskedPrompts(
            self.backbone.condition(bare),
            torch.where(says, prompts.sampled, with_concept),
            prompts.sampled,
            prompts.sought | says,
        )

    def of_own(self, count: int) -> AskedPrompts:
        """Of own samples, by fours: a neutral prompt, what asks for the undesired, a neutral prompt, the empty one.

        What was sought with the concept has the neutral prompt before it as its c_0 three times of four, else the empty
        one: c_0 must not tell what was sought.
        """
        texts, number = self._base_texts(count), torch.arange(count)
        sought = number % 4 == 1
        base = self.backbone.condition(texts)
        if self.found is not None:
            base = torch.where(sought, self.found[number // 4 % len(self.found)], base)
            return AskedPrompts(base, base, base, sought)
        which = [i // 4 for i in range(count)]
        alone = self.put_into([""] * count, which)
        return AskedPrompts(base, self.put_into(texts, which), torch.where(sought, alone, base), sought)


def _among(concept: str, text: str, which: int) -> str:
    """``text`` with ``concept`` before one of its words or after the last."""
    words = text.split()
    place = which % (len(words) + 1)
    return " ".join([*words[:place], concept, *words[place:]])
