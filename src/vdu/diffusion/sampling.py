"""Samples with equal seeds: image i depends only on (seed, i), not on the batch size, so that models can be paired.

Samples that a method learns from or a guard looks at have a ``purpose``, and so other noise than those that measure the
result, whatever the seeds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vdu.backbone import Backbone
from vdu.errors import VduError
from vdu.precision import autocast
from vdu.seeding import generator

__all__ = ["DEFAULT_STEPS", "SAMPLER", "sample"]

SAMPLER = "SDE-DPM-Solver++(2M)"
DEFAULT_STEPS = 12


def _generators(seed: int, purpose: str, name: str, first: int, count: int) -> list[torch.Generator]:
    """One for each of the samples ``first … first + count − 1``."""
    stream = (purpose, name) if purpose else (name,)
    return [generator(seed, *stream, first + i) for i in range(count)]


@torch.no_grad()
def sample(
    backbone: Backbone,
    network: nn.Module,
    count: int,
    seed: int,
    *,
    steps: int = DEFAULT_STEPS,
    batch_size: int = 128,
    precision: str = "fp32",
    conditions: Tensor | None = None,
    purpose: str = "",
) -> Tensor:
    """``count`` samples ``x_0`` ``(N, *latent_shape)`` on the CPU in ``steps`` solver steps.

    A text-to-image model is asked with ``conditions`` ``(count,)``, by default `Backbone.sample_conditions`;
    `Backbone.decode` makes pictures of them. Raises `VduError` where what the original made for a ``purpose`` is not
    finite.
    """
    device = next(network.parameters()).device
    training = network.training
    batch_size = min(batch_size, backbone.largest_batch)
    network.eval()
    samples = []
    for first in range(0, count, batch_size):
        drawn = _generators(seed, purpose, "sample", first, min(batch_size, count - first))
        noise = torch.stack([torch.randn(backbone.latent_shape, generator=g) for g in drawn]).to(device)
        if conditions is None:
            asked = backbone.sample_conditions(len(noise), first)
        else:
            asked = conditions[first : first + len(noise)]
        with autocast(network, precision):
            generators = _generators(seed, purpose, "path", first, len(noise))
            samples.append(backbone.denoise(network, noise, steps, generators, asked).float().cpu())
    network.train(training)
    made = torch.cat(samples)
    if purpose and network is backbone.network and not made.isfinite().all():
        raise VduError("what the model makes is not finite: give a model and schedule that work, or --precision fp32")
    return made
