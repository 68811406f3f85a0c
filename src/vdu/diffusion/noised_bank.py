"""A bank of noised images, and what the frozen network says of each: made once, read by everything that comes after.

    x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε,   f_*(x_t, t, c),   f_*(x_t, t, ∅),   h(x_t, t, c),   h(x_t, t, ∅)

``h`` are inner features (`Backbone.original_with_features`). Forget images are told from own samples by those without a
prompt: what was asked for must not tell them apart. One pass (two where there are prompts) of the original serves
responsibilities, ρ and the regression's target, and a step of the loop then costs a plain training step. Times are
stratified: draw k of K puts every image once into ``t / T`` ∈ [k/K, (k + 1)/K).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vdu.backbone import Backbone
from vdu.diffusion.noising import Clean
from vdu.diffusion.stratified_times import stratified_shares, times_at
from vdu.precision import autocast
from vdu.seeding import generator

__all__ = ["BANK_ITEMS", "NETWORK_BATCH", "NoisedBank", "fill_bank", "network_batches"]

NETWORK_BATCH = 128
BANK_ITEMS = 3072
BANK_BYTES = 2**30
FEWEST_DRAWS = 4


@dataclass(frozen=True)
class NoisedBank:
    """``K`` draws of ``N`` images, draw-major: ``x_t`` and ``original`` (float16) ``(K·N, *latent_shape)``, times ``t``
    ``(K·N,)`` and ``t_share`` = t / T, ``features`` ``(K·N, D)``, conditions ``c`` ``(K·N,)`` or None. ``unprompted``
    (float16) and ``features`` are without a prompt; the same tensors as ``original`` and ``prompted_features`` where
    there are none. ``asked`` ``(K·N,)``: what a network in training is asked with, where that is not ``c``
    (`vdu.text.asking`)."""

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


def _draws(images: Tensor, items: int) -> int:
    """As many as fill the bank, fewer where the images are large."""
    bytes_each = images[0].numel() * 6
    return max(FEWEST_DRAWS, math.ceil(min(items, BANK_BYTES // bytes_each) / len(images)))


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
) -> NoisedBank:
    """Noise ``images`` ``(N, *latent_shape)`` at times in ``t_range`` · T and ask the frozen network.

    Deterministic for (seed, stream). ``draws`` is as many as make ``items`` where it is not given.
    """
    clean = Clean.of(images)
    draws, g = draws or _draws(clean.x_0, items), generator(seed, "bank", stream)
    share = t_range[0] + (t_range[1] - t_range[0]) * stratified_shares(draws, g, each=len(images))
    t = times_at(share, backbone.timesteps)
    x_0, device = clean.repeat(draws), backbone.device
    x_t = backbone.add_noise(x_0.x_0, torch.randn(x_0.x_0.shape, generator=g), t).to(device)
    t, c = t.to(device), None if x_0.c is None else x_0.c.to(device)
    without = _asked(backbone, x_t, t, precision, None)
    asked = _asked(backbone, x_t, t, precision, c) if c is not None and c.any() else without
    share = t / backbone.timesteps
    return NoisedBank(len(images), draws, x_t, t, share, asked[0], without[0], without[1], asked[1], c)


@torch.no_grad()
def _asked(backbone: Backbone, x_t: Tensor, t: Tensor, precision: str, c: Tensor | None) -> tuple[Tensor, Tensor]:
    """Outputs (float16) and features of the frozen network."""
    outputs, features = [], []
    with autocast(backbone.network, precision):
        for i in network_batches(backbone, torch.arange(len(t))):
            output, feature = backbone.original_with_features(x_t[i], t[i], None if c is None else c[i])
            outputs.append(output.half())
            features.append(feature)
    return torch.cat(outputs), torch.cat(features)
