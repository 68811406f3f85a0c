"""The error at all scales against a naive loop and pictures whose error is known."""

from __future__ import annotations

import math

import pytest
import torch

from vdu.diffusion.multi_scale import multi_scale_error


@pytest.mark.parametrize(("size", "scales"), [((8, 8), (2, 4, 8)), ((28, 28), (2, 4, 8, 16, 32)), ((1, 1), ())])
def test_a_shift_of_the_whole_picture_counts_at_every_scale_up_to_the_noise(size, scales):
    shifted, sigma = torch.full((3, 3, *size), 0.1), torch.tensor([0.0, 3.0, 150.0])
    counts = [1, 1 + sum(min(s, 3) for s in scales), 1 + sum(scales)]
    assert multi_scale_error(shifted, sigma) == pytest.approx([0.01 * count for count in counts], rel=1e-5)


def test_areas_of_a_picture_that_is_no_power_of_two_are_equal_but_for_the_last():
    error = torch.randn(1, 1, 20, 28, generator=torch.Generator().manual_seed(0))
    total = float(error.pow(2).mean())
    for scale, rows, columns in ((2, [2] * 10, [2] * 14), (4, [4] * 5, [4] * 7), (8, [7, 7, 6], [7] * 4)):
        parts = [part for band in error.split(rows, 2) for part in band.split(columns, 3)]
        total += scale * sum(float(part.mean()) ** 2 for part in parts) / len(parts)
    halves = [part for band in error.split(10, 2) for part in band.split(14, 3)]
    total += 16 * sum(float(part.mean()) ** 2 for part in halves) / 4 + 32 * float(error.mean()) ** 2
    assert multi_scale_error(error, torch.tensor([150.0])).item() == pytest.approx(total)


def test_an_error_that_no_wider_area_has_counts_once():
    checkered = (torch.arange(8).unsqueeze(1) + torch.arange(8)) % 2 * 2.0 - 1
    assert multi_scale_error(checkered.expand(1, 3, 8, 8), torch.tensor([150.0])).item() == pytest.approx(1)


@pytest.mark.parametrize("sigma", [0.5, 5.0, math.inf])
def test_it_is_the_sum_over_areas_of_each_size(sigma):
    error = torch.randn(1, 2, 4, 8, generator=torch.Generator().manual_seed(0))
    total = float(error.pow(2).mean())
    for scale in (2, 4, 8):
        tall = min(scale, 4)
        areas = [
            float(error[0, channel, y : y + tall, x : x + scale].mean()) ** 2
            for channel in range(2)
            for y in range(0, 4, tall)
            for x in range(0, 8, scale)
        ]
        total += min(scale, sigma) * sum(areas) / len(areas)
    assert multi_scale_error(error, torch.tensor([sigma])).item() == pytest.approx(total)
