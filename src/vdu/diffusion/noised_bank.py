"""A bank of noised images, and what the frozen network says of each: made once, read by everything that comes after.

    x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε,   f_*(x_t, t, c),   f_*(x_t, t, ∅),   h(x_t, t, c),   h(x_t, t, ∅)

``h`` are inner features (`vdu.backbone.features`). Forget images are told from own samples by those without a
prompt: what was asked for must not tell them apart. One pass (two where there are prompts) of the original serves
responsibilities, ρ and the regression's target, and a step of the loop then costs a plain training step. Times are
stratified: draw k of K puts every image once into ``t / T`` ∈ [k/K, (k + 1)/K).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from vdu.backbone import Backbone
from vdu.diffusion.noising import Clean
from vdu.diffusion.stratified_times import stratified_shares, times_at
from vdu.precision import autocast
from vdu.seeding import generator

__all__ = ["BANK_ITEMS", "FEWEST_DRAWS", "NETWORK_BATCH", "NoisedBank", "fill_bank", "network_batches", "spread"]

NETWORK_BATCH = 128
BANK_ITEMS = 3072
BANK_BYTES = 2**30
BYTES_KEPT = 6  # of each value: x_t in float32, the original's output in float16
FEWEST_DRAWS = 4


@dataclass(frozen=True)
class NoisedBank:
    """``K`` draws of ``N`` images, draw-major: ``x_t`` and ``original`` (float16) ``(K·N, *latent_shape)``, times ``t``
    ``(K·N,)`` and ``t_share`` = t / T, ``features`` ``(K·N, D)``, conditions ``c`` ``(K·N,)`` or None. ``unprompted``
    (float16) and ``features`` are without a prompt; the same tensors as ``original`` and ``prompted_features`` where
    there are none. Of pictures and outputs there is none where only features were asked for. ``asked`` ``(K·N,)``: what
    a network in training is asked with, where that is not ``c`` (`vdu.text.asking`)."""

    images: int
    draws: int
    x_t: Tensor
    t: Tensor
    t_share: Tensor
    original: Tensor
    unprompted: Tensor
    features: Tensor
    prompted_features: Tensor
    c: Tensor | None = None
    asked: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """All that `of` needs, none of them twice."""
        named = {"x_t": self.x_t, "t": self.t, "t_share": self.t_share, "original": self.original, "c": self.c}
        named |= {"features": self.features, "asked": self.asked}
        if self.unprompted is not self.original:
            named["unprompted"] = self.unprompted
        if self.prompted_features is not self.features:
            named["prompted_features"] = self.prompted_features
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], images: int, device: torch.device) -> Self:
        """The bank of ``images`` whose `tensors` are given, on ``device``."""
        placed = {name: tensor.to(device) for name, tensor in tensors.items()}
        placed.setdefault("unprompted", placed["original"])
        placed.setdefault("prompted_features", placed["features"])
        return cls(images, len(placed["t"]) // images, **placed)

    def earliest(self, share: float) -> int:
        """How many items lie in the draws with every ``t / T`` under ``share``; they come first."""
        under = (self.t_share.view(self.draws, self.images) < share).all(1)
        return max(1, int(under.sum())) * self.images

    def condition(self, i: Tensor) -> Tensor | None:
        """What a network in training is asked with at the items ``i``."""
        asked = self.c if self.asked is None else self.asked
        return None if asked is None else asked[i]

    def without_prompts(self) -> NoisedBank:
        """The same pictures asked about with the empty prompt."""
        empty = None if self.c is None else torch.zeros_like(self.c)
        return replace(self, original=self.unprompted, prompted_features=self.features, c=empty)

    def by_image(self, values: Tensor) -> Tensor:
        """The mean over draws ``(N,)`` of values ``(k·N,)`` of the first k draws."""
        return values.view(-1, self.images).mean(0)


def network_batches(backbone: Backbone, items: Tensor) -> tuple[Tensor, ...]:
    """``items`` in parts that go through the network at once."""
    return items.split(min(NETWORK_BATCH, backbone.largest_batch)) if len(items) else ()


def _draws(images: Tensor, items: int, features_only: bool) -> int:
    """As many as fill the bank, fewer where large images are kept in it."""
    most = items if features_only else min(items, BANK_BYTES // (images[0].numel() * BYTES_KEPT))
    return max(FEWEST_DRAWS, math.ceil(most / len(images)))


def spread(images: Clean, most: int) -> Clean:
    """``most`` of the images, evenly spread over their order; all where they are no more."""
    return images if len(images) <= most else images[torch.linspace(0, len(images) - 1, most).long()]


def fill_bank(
    backbone: Backbone,
    images: Clean | Tensor,
    seed: int,
    stream: str,
    *,
    precision: str = "fp32",
    items: int = BANK_ITEMS,
    draws: int | None = None,
    t_range: tuple[float, float] = (0.0, 1.0),
    features_only: bool = False,
) -> NoisedBank:
    """Noise ``images`` ``(N, *latent_shape)`` at times in ``t_range`` · T and ask the frozen network.

    Deterministic for (seed, stream). ``draws`` is as many as make ``items`` where it is not given. With
    ``features_only`` neither the noised images nor what the network says of them is kept, and no prompt is asked with.
    """
    clean, device = Clean.of(images), backbone.device
    draws, g = draws or _draws(clean.x_0, items, features_only), generator(seed, "bank", stream)
    share = t_range[0] + (t_range[1] - t_range[0]) * stratified_shares(draws, g, each=len(images))
    t = times_at(share, backbone.timesteps)
    c = None if clean.c is None else clean.c.repeat(draws).to(device)
    # Room for all at once: joined from parts, large pictures would for a while be held twice.
    kept = (0 if features_only else len(t), *clean.x_0.shape[1:])
    x_t, unprompted = torch.empty(kept, device=device), torch.empty(kept, device=device, dtype=torch.half)
    prompted = not features_only and c is not None and bool(c.any())
    original, features, prompted_features = torch.empty_like(unprompted) if prompted else unprompted, [], []
    for i in network_batches(backbone, torch.arange(len(t))):
        x_0, at = clean.x_0[i % len(clean)], t[i].to(device)
        noised = backbone.add_noise(x_0, torch.randn(x_0.shape, generator=g), t[i]).to(device)
        if features_only:
            features.append(_features(backbone, noised, at, precision))
            continue
        x_t[i] = noised
        unprompted[i], found = _asked(backbone, noised, at, precision, None)
        features.append(found)
        if prompted and c is not None:
            original[i], found = _asked(backbone, noised, at, precision, c[i])
            prompted_features.append(found)
    without = torch.cat(features)
    with_prompts = torch.cat(prompted_features) if prompted else without
    t = t.to(device)
    share = t / backbone.timesteps
    return NoisedBank(len(images), draws, x_t, t, share, original, unprompted, without, with_prompts, c)


@torch.no_grad()
def _asked(backbone: Backbone, x_t: Tensor, t: Tensor, precision: str, c: Tensor | None) -> tuple[Tensor, Tensor]:
    """Outputs (float16) and features of the frozen network."""
    with autocast(backbone.network, precision):
        output, features = backbone.original_with_features(x_t, t, c)
    return output.half(), features


@torch.no_grad()
def _features(backbone: Backbone, x_t: Tensor, t: Tensor, precision: str) -> Tensor:
    """What the frozen network knows without a prompt."""
    with autocast(backbone.network, precision):
        return backbone.original_features(x_t, t)
