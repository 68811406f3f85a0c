"""Words are given an anchor prompt's keys and values, in closed form, without training.

    min_W λ ‖W − W_*‖² + Σ_{c ∈ concepts} s_e ‖W c − W_* c'‖² + Σ_{c ∈ kept} s_p / P ‖W c − W_* c‖²
    W = W_* (λ I + Σ_e s_e c' cᵀ + Σ_p s_p / P c cᵀ) (λ I + Σ_e s_e c cᵀ + Σ_p s_p / P c cᵀ)⁻¹

for every cross-attention key and value projection W. Gandikota et al., arXiv 2308.14761. ``c`` are the token states of
a prompt, ``c'`` those of the anchor at the same places; kept are the P neutral prompts that do not name a concept, all
together as heavy as one, lest a long list of them undo the erasing. Text is read forwards, so what a concept begins
with in common with a kept prompt (the start mark, an article) has the same states in both and is not edited. W_* stands
before a factor F that is the same for all layers.

Many concepts move prompts that nobody thought of keeping. So several (`among_neutral`) are erased no more than prompts
allow that F was not made from: s_e is the largest of 1, ½, ¼ … at which for either unseen half of the kept

    Σ_W Σ_c ‖W F c − W c‖² ≤ δ² Σ_W Σ_c ‖W c‖²
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vdu.backbone.stable_diffusion import StableDiffusionBackbone
from vdu.prompts import Prompts

__all__ = ["KEYS_AND_VALUES", "ClosedForm", "closed_form_factor", "own_places"]

KEYS_AND_VALUES = "*.attn2.to_[kv].weight"
HOLD, ERASE, KEEP = 0.5, 1.0, 1.0
# δ: a name or two change 0.06 to 0.16; twenty erased in full 0.5, and a third of the rest is lost.
LARGEST_CHANGE = 0.25
HALVINGS = 10
FEWEST_KEPT = 16  # prompts; fewer say nothing of those that they leave out


def closed_form_factor(
    concepts: Tensor, anchors: Tensor, kept: Tensor, *, hold: float, erase: float, keep: float
) -> Tensor:
    """F ``(D, D)`` of W = W_* F in double precision, from token states, one a row ``(N, D)``."""
    c, anchor, p = (x.cpu().double() for x in (concepts, anchors, kept))
    common = hold * torch.eye(c.shape[1], dtype=c.dtype) + keep * p.T @ p
    left, right = common + erase * anchor.T @ c, common + erase * c.T @ c
    return torch.linalg.solve(right, left, left=False)


def own_places(backbone: StableDiffusionBackbone, concepts: Sequence[str], others: Sequence[str]) -> Tensor:
    """Where ``concepts`` read otherwise than each of ``others`` up to there: ``(N, L)``, boolean."""
    c, other = backbone.tokens(concepts), backbone.tokens(others)
    return ~(c[:, None] == other).cumprod(-1).bool().any(1)


@dataclass(frozen=True)
class ClosedForm:
    """The ``factor`` ``(D, D)``, and the states ``(n, D)`` of ``concepts`` and of their ``anchors``."""

    original: nn.Module
    factor: Tensor
    concepts: Tensor
    anchors: Tensor

    @classmethod
    def of_words(
        cls,
        backbone: StableDiffusionBackbone,
        concepts: Sequence[str],
        kept: Sequence[str],
        anchor: str = "",
        *,
        hold: float = HOLD,
        erase: float = ERASE,
        keep: float = KEEP,
    ) -> ClosedForm:
        """``concepts`` are to mean what ``anchor`` means, and the prompts ``kept`` what they mean now."""
        own = own_places(backbone, concepts, [*kept, anchor])
        words, anchors = (backbone.states_of(texts)[own] for texts in (concepts, [anchor] * len(concepts)))
        states = backbone.states_of(kept).flatten(0, 1)
        factor = closed_form_factor(words, anchors, states, hold=hold, erase=erase, keep=keep / len(kept))
        return cls(backbone.network, factor, words, anchors)

    @classmethod
    def among_neutral(cls, backbone: StableDiffusionBackbone, concepts: Sequence[str]) -> ClosedForm | None:
        """``concepts`` are to mean nothing, as far as other prompts bear it.

        None where no neutral prompt would hold what other words mean.
        """
        kept = [text for text in replace(backbone.prompts or Prompts(), forget=tuple(concepts)).kept if text]
        if not kept:
            return None
        erase = _bearable(backbone, concepts, kept) if len(concepts) > 1 and len(kept) >= FEWEST_KEPT else ERASE
        return cls.of_words(backbone, concepts, kept, erase=erase)

    @torch.no_grad()
    def set_weights(self, network: nn.Module) -> None:
        """Give ``network`` the matrices W of those keys and values in it that are trained."""
        for name, p in network.named_parameters():
            if p.requires_grad and fnmatch.fnmatch(name, KEYS_AND_VALUES):
                p.copy_(self.original.get_parameter(name).cpu().double() @ self.factor)


def _metric(network: nn.Module, width: int) -> Tensor:
    """Σ_W Wᵀ W ``(D, D)`` over keys and values, of which no two are held at once."""
    metric = torch.zeros(width, width, dtype=torch.float64)
    for name, p in network.named_parameters():
        if fnmatch.fnmatch(name, KEYS_AND_VALUES):
            w = p.detach().cpu().double()
            metric += w.T @ w
    return metric


def _bearable(backbone: StableDiffusionBackbone, concepts: Sequence[str], kept: Sequence[str]) -> float:
    """The largest of `HALVINGS` s_e at which neither half of ``kept`` moves more than `LARGEST_CHANGE` where the other
    half is kept; the smallest where each would."""
    middle = len(kept) // 2
    halves = ((kept[:middle], kept[middle:]), (kept[middle:], kept[:middle]))
    metric = _metric(backbone.network, backbone.states_of(kept[:1]).shape[-1])

    def change(erase: float, known: Sequence[str], unseen: Sequence[str]) -> float:
        factor = ClosedForm.of_words(backbone, concepts, known, erase=erase).factor
        c = backbone.states_of(unseen).flatten(0, 1).cpu().double()
        moved = c @ factor.T - c
        return float((((moved @ metric) * moved).sum() / ((c @ metric) * c).sum()).sqrt())

    erasures = [ERASE / 2**k for k in range(HALVINGS)]
    return next((s for s in erasures if all(change(s, *half) <= LARGEST_CHANGE for half in halves)), erasures[-1])
