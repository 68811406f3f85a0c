"""Samples with equal seeds: image i depends only on (seed, i), not on the batch size, so that models can be paired."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vdu.backbone import Backbone
from vdu.seeding import generator

__all__ = ["DEFAULT_STEPS", "SAMPLER", "initial_noise", "sample"]

SAMPLER = "SDE-DPM-Solver++(2M)"
DEFAULT_STEPS = 12


def initial_noise(shape: tuple[int, int, int], count: int, seed: int, first: int = 0) -> Tensor:
    """Standard normal noise ``(count, C, H, W)`` for the samples ``first … first + count − 1`` of ``seed``."""
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
) -> Tensor:
    """``count`` images ``(N, C, H, W)`` in [-1, 1] on the CPU with ``steps`` network evaluations an image."""
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    images = []
    for first in range(0, count, batch_size):
        noise = initial_noise(backbone.shape, min(batch_size, count - first), seed, first).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            generators = [generator(seed, "path", first + i) for i in range(len(noise))]
            images.append(backbone.denoise(network, noise, steps, generators).float().cpu())
    network.train(training)
    return torch.cat(images).clone()
