"""Muon against the singular value decomposition and a plain version of its formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from vdu.weights.muon import Muon, orthogonalised

A, B, C = 3.4445, -4.7750, 2.0315


def _polynomial(s: Tensor) -> Tensor:
    for _ in range(5):
        s = A * s + B * s**3 + C * s**5
    return s


@pytest.mark.parametrize("shape", [(16, 144), (144, 16), (32, 32), (1, 50), (50, 1)])
def test_orthogonalised_maps_singular_values_and_keeps_vectors(shape: tuple[int, int]) -> None:
    g = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=g, dtype=torch.float64)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    expected = (u * _polynomial(s / matrix.norm())) @ v
    torch.testing.assert_close(orthogonalised(matrix), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(orthogonalised(matrix.float()), expected.float(), rtol=1e-3, atol=1e-4)


def test_singular_values_end_near_one() -> None:
    s = torch.logspace(0, -2, 200, dtype=torch.float64)
    assert float(_polynomial(s).min()) >= 0.68
    assert float(_polynomial(s).max()) <= 1.21
    assert float(orthogonalised(torch.zeros(4, 6)).abs().max()) == 0


def test_two_steps_of_a_kernel_and_a_bias_are_the_formula() -> None:
    g = torch.Generator().manual_seed(1)
    kernel, bias = nn.Parameter(torch.randn(6, 4, 3, 3, generator=g)), nn.Parameter(torch.randn(6, generator=g))
    expected = {p: p.detach().clone() for p in (kernel, bias)}
    momentum = {p: torch.zeros_like(p) for p in (kernel, bias)}
    optimizer = Muon([kernel, bias], lr=0.1)
    for _ in range(2):
        for p, matrix_shape in ((kernel, (6, 36)), (bias, (1, 6))):
            p.grad = torch.randn(p.shape, generator=g)
            momentum[p] = 0.9 * momentum[p] + 0.1 * p.grad
            u, s, v = torch.linalg.svd((0.1 * p.grad + 0.9 * momentum[p]).view(matrix_shape), full_matrices=False)
            step = (u * _polynomial(s / s.norm())) @ v
            expected[p] -= 0.1 * 0.2 * math.sqrt(max(matrix_shape)) * step.view_as(p)
        optimizer.step()
    for p, wanted in expected.items():
        torch.testing.assert_close(p.detach(), wanted, rtol=1e-3, atol=1e-4)


def test_a_weight_moves_by_a_fifth_of_the_rate_whatever_its_shape() -> None:
    g = torch.Generator().manual_seed(2)
    for shape in ((64, 64, 3, 3), (16, 128), (40,)):
        p = nn.Parameter(torch.zeros(shape))
        p.grad = torch.randn(shape, generator=g)
        Muon([p], lr=1e-3).step()
        assert 0.6 < float(p.detach().square().mean().sqrt()) / 2e-4 < 1.3


def test_what_has_no_gradient_stays() -> None:
    moved, still = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    moved.grad = torch.eye(3)
    Muon([moved, still], lr=0.1).step()
    assert torch.equal(still, torch.ones(3, 3))
    assert not torch.equal(moved, torch.ones(3, 3))
