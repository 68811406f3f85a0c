"""Samples with equal seeds: image i depends only on (seed, i), not on the batch size, so that models can be paired."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vdu.backbone import Backbone
from vdu.precision import autocast
from vdu.seeding import generator

__all__ = ["DEFAULT_STEPS", "SAMPLER", "initial_noise", "sample"]

SAMPLER = "SDE-DPM-Solver++(2M)"
DEFAULT_STEPS = 12


def initial_noise(shape: tuple[int, int, int], count: int, seed: int, first: int = 0) -> Tensor:
    """Standard normal noise ``(count, *shape)`` for the samples ``first … first + count − 1`` of ``seed``."""
    return torch.stack([torch.randn(shape, generator=generator(seed, "sample", first + i)) for i in range(count)])


@torch.inference_mode()
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
) -> Tensor:
    """``count`` samples ``x_0`` ``(N, *latent_shape)`` on the CPU in ``steps`` solver steps.

    A text-to-image model is asked with ``conditions`` ``(count,)``, by default `Backbone.sample_conditions`;
    `Backbone.decode` makes pictures of them.
    """
    device = next(network.parameters()).device
    training = network.training
    batch_size = min(batch_size, backbone.largest_batch)
    network.eval()
    samples = []
    for first in range(0, count, batch_size):
        noise = initial_noise(backbone.latent_shape, min(batch_size, count - first), seed, first).to(device)
        if conditions is None:
            asked = backbone.sample_conditions(len(noise), first)
        else:
            asked = conditions[first : first + len(noise)]
        with autocast(network, precision):
            generators = [generator(seed, "path", first + i) for i in range(len(noise))]
            samples.append(backbone.denoise(network, noise, steps, generators, asked).float().cpu())
    network.train(training)
    return torch.cat(samples).clone()
