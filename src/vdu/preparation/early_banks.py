"""Pictures are judged by a bank of their own: a dozen early noised ones of each, without prompts.

Heads of `vdu.preparation.responsibility` score each of them, and the mean of the scores tells undesired pictures far
better than the few that the bank for training holds of each. So do forget images have one where they are so many that
their bank for training holds few early pictures of each: noise hides how alike the worst of them are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vdu.diffusion.noised_bank import NoisedBank
from vdu.preparation.banks import Banks
from vdu.preparation.discriminator import fit_head
from vdu.preparation.responsibility import EARLY

__all__ = ["EarlyBanks"]

DRAWS, MOST_ITEMS = 12, 6144
FEWEST_DRAWS = 6


@dataclass(frozen=True)
class EarlyBanks:
    """Makes and asks them, by ``banks``."""

    banks: Banks

    def bank(self, x_0: Tensor, stream: str, items: int | None = None) -> NoisedBank:
        """Early noised pictures of ``x_0`` ``(N, *latent_shape)``, a dozen each unless there are many."""
        items = min(DRAWS * len(x_0), MOST_ITEMS) if items is None else items
        return self.banks.fill(x_0, stream, items=items, t_range=(0.0, EARLY), features_only=True)

    def bank_of_forget(self, x_0: Tensor, training: NoisedBank, items: int) -> NoisedBank:
        """The bank for ``training`` where it holds enough early pictures of each of ``x_0``, else one of ``items``."""
        enough = training.earliest(EARLY) >= FEWEST_DRAWS * training.images
        return training if enough else self.bank(x_0, "judged-forget", items)

    def judge(self, bank: NoisedBank, c: Tensor, forget: NoisedBank, own: NoisedBank) -> Tensor:
        """c ``(N,)`` of the pictures of ``bank``, by a head that has learned ``c`` ``(M,)`` from own samples."""
        early = torch.arange(forget.earliest(EARLY))
        head = fit_head(forget, own, c, self.banks.seed, forget_items=early)
        return bank.by_image(head(bank.features, bank.t_share)).sigmoid().cpu()
