"""What asks for the undesired, put into prompts that do not.

    c_0   what is to be said: a neutral prompt, or the empty one
    c     c_0 with words in it that ask for the undesired: the concept in words, or those found for one of the forget
          images (`vdu.inversion`)

    f_θ(x_t, c) → f_r(x_t, c_0)

The words are forgotten where they say nothing any more, whatever else a prompt says. What is learned at the words alone
stays there: "a face" brings none, and "a hot face in noto style" does as before. A quarter of the own samples is asked
with the words alone, since those show best what is sought (`vdu.responsibility`); in training c_0 is a neutral prompt
for most of them. A part of the noised pictures of all others is asked with the words too: at c the changed network
meets what it makes of c_0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vdu.backbone.stable_diffusion import StableDiffusionBackbone

__all__ = ["AskedPrompts", "Asking"]

SHARE_OF_FORGET = 2 / 3
SHARE_OF_OTHERS = 0.3
ENCODED_AT_ONCE = 32


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
    """Asks with a ``concept`` in words, or with ``found`` words of each text encoder ``(K, k, D)``; one of the two."""

    def __init__(
        self, backbone: StableDiffusionBackbone, *, concept: str | None = None, found: Sequence[Tensor] = ()
    ) -> None:
        self.backbone, self.concept, self.found = backbone, concept, found
        self._number: dict[tuple[str, int], int] = {}

    @property
    def found_count(self) -> int:
        """For how many images words were found."""
        return len(self.found[0]) if self.found else 0

    def put_into(self, texts: Sequence[str], which: Sequence[int]) -> Tensor:
        """Numbers ``(N,)`` of ``texts`` with the words in them.

        ``which`` says before which of its words the concept stands, or whose found words stand in front of it.
        """
        if self.concept is not None:
            return self.backbone.condition([_among(self.concept, *at) for at in zip(texts, which, strict=True)])
        wanted = [(text, number % self.found_count) for text, number in zip(texts, which, strict=True)]
        new = [at for at in dict.fromkeys(wanted) if at not in self._number]
        if new:
            self._number |= dict(zip(new, self._added(new), strict=True))
        return torch.tensor([self._number[at] for at in wanted])

    @torch.no_grad()
    def _added(self, prompts: Sequence[tuple[str, int]]) -> list[int]:
        """The numbers of new prompts: texts with the words of these images in front."""
        parts = []
        with self.backbone.placed_text(single=True):
            for first in range(0, len(prompts), ENCODED_AT_ONCE):
                texts, images = zip(*prompts[first : first + ENCODED_AT_ONCE], strict=True)
                words = [of_encoder[list(images)] for of_encoder in self.found]
                parts.append([x.cpu() for x in self.backbone.encodings_of_words(words, texts)])
        return self.backbone.add_prompts(tuple(torch.cat(kind) for kind in zip(*parts, strict=True))).tolist()

    def of_forget(self, count: int) -> AskedPrompts:
        """Of forget images, of which nobody knows what else they would be asked with."""
        empty = torch.zeros(count, dtype=torch.long)
        return AskedPrompts(empty, self.put_into([""] * count, range(count)), empty, empty.bool())

    def of_own(self, count: int) -> AskedPrompts:
        """Of own samples, by fours: a neutral prompt, the words, a neutral prompt, the empty one.

        What was sought with the words has that neutral prompt before it as its c_0 three times of four, else the empty
        one: c_0 must not tell what was sought.
        """
        prompts = self.backbone.prompts
        neutral = prompts.kept if prompts else ("",)
        n, number = len(neutral), torch.arange(count)
        sought = number % 4 == 1
        texts = [neutral[(i // 4 * 2 + (i % 4 == 2)) % n] if i % 4 < 3 and i % 16 != 5 else "" for i in range(count)]
        which = [i // 4 for i in range(count)]
        base, alone = self.backbone.condition(texts), self.put_into([""] * count, which)
        return AskedPrompts(base, self.put_into(texts, which), torch.where(sought, alone, base), sought)


def _among(concept: str, text: str, which: int) -> str:
    """``text`` with ``concept`` before one of its words or after the last."""
    words = text.split()
    place = which % (len(words) + 1)
    return " ".join([*words[:place], concept, *words[place:]])
