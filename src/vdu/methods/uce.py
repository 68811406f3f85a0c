"""`uce`: the concept's words are given an anchor prompt's keys and values, in closed form, without training.

    min_W λ ‖W − W_*‖² + Σ_{c ∈ concepts} s_e ‖W c − W_* c'‖² + Σ_{c ∈ kept} s_p / P ‖W c − W_* c‖²
    W = W_* (λ I + Σ_e s_e c' cᵀ + Σ_p s_p / P c cᵀ) (λ I + Σ_e s_e c cᵀ + Σ_p s_p / P c cᵀ)⁻¹

for every cross-attention key and value projection W. Gandikota et al., arXiv 2308.14761. ``c`` are the token states of
a prompt, ``c'`` those of the anchor at the same places; kept are the P neutral prompts that do not name a concept, all
together as heavy as one, lest a long list of them undo the erasing. Text is read forwards, so what a concept begins
with in common with a kept prompt (the start mark, an article) has the same states in both and is not edited. W_* stands
before a factor that is the same for all layers. From words alone: only the guard, where wanted, looks at the images.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vdu.backbone.stable_diffusion import StableDiffusionBackbone
from vdu.errors import VduError
from vdu.objective import Direction, Method, MethodSettings, NotNegative, Positive
from vdu.preparation import Preparation

__all__ = ["METHOD", "closed_form_factor", "own_places"]

KEYS_AND_VALUES = "*.attn2.to_[kv].weight"


class Settings(MethodSettings):
    """The only step sets the weights: learning rate, batch and schedule have no effect."""

    needs = ("forget", "prompt")
    holds_weights = True
    steps: Literal[1] = Field(1, description="the closed form takes one step")
    guard_every_steps: int = Field(0, ge=0)
    parameters: str = KEYS_AND_VALUES
    hold: Positive = Field(0.5, description="λ: weight of staying close to the original's matrices")
    erase: Positive = Field(1.0, description="s_e: weight of each token of a concept")
    keep: NotNegative = Field(1.0, description="s_p: weight of the neutral prompts, token by token, spread over them")
    anchor: str = Field("", description="prompt that is put in the concept's place")


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


@dataclass
class _ClosedForm(Direction):
    """Pairs of a trained matrix and the original's, the factor, and the states ``(n, D)`` that the loss is about."""

    pairs: list[tuple[Tensor, Tensor]]
    factor: Tensor
    concepts: Tensor
    anchors: Tensor

    @torch.no_grad()
    def gradient(self, network: nn.Module, batch_size: int, g: torch.Generator, precision: str) -> Tensor:
        """Zeros, which leave the optimiser still; the loss is how far concepts are from their anchors."""
        errors = []
        for trained, original in self.pairs:
            trained.grad = torch.zeros_like(trained)
            concepts, anchors = (x.to(trained.device) for x in (self.concepts, self.anchors))
            errors.append((concepts @ trained.T - anchors @ original.T).pow(2).mean())
        return torch.stack(errors).mean()

    @torch.no_grad()
    def after_step(self, learning_rate: float) -> None:
        """Set the weights."""
        for trained, original in self.pairs:
            trained.copy_(original.cpu().double() @ self.factor)


def build(settings: Settings, preparation: Preparation, network: nn.Module) -> Direction:
    """Raises `VduError` for parameters that the closed form is not about."""
    concepts, kept, backbone = preparation.concepts, preparation.kept_prompts, preparation.backbone
    if not isinstance(backbone, StableDiffusionBackbone):
        raise VduError("method uce needs a network with cross-attention to text: give a Stable Diffusion pipeline")
    original = dict(backbone.network.named_parameters())
    chosen = {name: p for name, p in network.named_parameters() if p.requires_grad}
    other = [name for name in chosen if not fnmatch.fnmatch(name, KEYS_AND_VALUES)]
    if other:
        raise VduError(f"method uce sets keys and values of cross-attention only, not {other[0]}: narrow parameters")
    own = own_places(backbone, concepts, [*kept, settings.anchor])
    words, anchors = (backbone.states_of(texts)[own] for texts in (concepts, [settings.anchor] * len(concepts)))
    states = backbone.states_of(kept).flatten(0, 1)
    weights = {"hold": settings.hold, "erase": settings.erase, "keep": settings.keep / len(kept)}
    factor = closed_form_factor(words, anchors, states, **weights)
    pairs: list[tuple[Tensor, Tensor]] = [(p, original[name]) for name, p in chosen.items()]
    return _ClosedForm(pairs, factor, words, anchors)


METHOD = Method("uce", Settings, build)
