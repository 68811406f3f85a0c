"""What asks for the undesired, put into prompts that do not.

    c_0   what is to be said: a neutral prompt, or the empty one
    c     c_0 with words in it that ask for the undesired: the concept in words, or those found for one of the forget
          images (`vdu.inversion`)

    f_θ(x_t, c) → f_r(x_t, c_0)

The words are forgotten where they say nothing any more, whatever else a prompt says. What is learned at the words alone
stays there: "a face" brings none, and "a hot face in noto style" does as before. So half of the own samples are asked
with the words, a quarter of those with nothing else, and a part of the noised pictures of all others too: at c the
changed network meets what it makes of c_0. As both halves of the own samples ask for all sorts of things, heads tell
what the pictures show, not what they were asked with (`vdu.responsibility`).
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


@dataclass(frozen=True)
class AskedPrompts:
    """Numbers ``(N,)`` of ``base`` prompts c_0 and of the same ``with_words`` c, and which images were ``sought``
    ``(N,)`` with c."""

    base: Tensor
    with_words: Tensor
    sought: Tensor

    @property
    def asked(self) -> Tensor:
        """What the images are sampled with ``(N,)``."""
        return torch.where(self.sought, self.with_words, self.base)

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
        with torch.no_grad(), self.backbone.placed_text(single=True):
            for text, image in dict.fromkeys(wanted):
                if (text, image) not in self._number:
                    words = [of_encoder[image : image + 1] for of_encoder in self.found]
                    encodings = self.backbone.encodings_of_words(words, [text])
                    self._number[text, image] = int(self.backbone.add_prompts(encodings))
        return torch.tensor([self._number[at] for at in wanted])

    def of_forget(self, count: int) -> AskedPrompts:
        """Of forget images, of which nobody knows what else they would be asked with."""
        empty = torch.zeros(count, dtype=torch.long)
        return AskedPrompts(empty, self.put_into([""] * count, range(count)), empty.bool())

    def of_own(self, count: int) -> AskedPrompts:
        """Of own samples, by fours: a neutral prompt, two with the words, the empty prompt."""
        prompts = self.backbone.prompts
        neutral = prompts.kept if prompts else ("",)
        turn, n = torch.arange(count) % 4, len(neutral)
        sought = (turn == 1) | (turn == 2)
        alone = (turn == 3) | (torch.arange(count) % 8 == 2)
        texts = ["" if alone[i] else neutral[(i // 4 + i % 4 * n // 3) % n] for i in range(count)]
        return AskedPrompts(
            self.backbone.condition(texts), self.put_into(texts, [i // 2 for i in range(count)]), sought
        )


def _among(concept: str, text: str, which: int) -> str:
    """``text`` with ``concept`` before one of its words or after the last."""
    words = text.split()
    place = which % (len(words) + 1)
    return " ".join([*words[:place], concept, *words[place:]])
