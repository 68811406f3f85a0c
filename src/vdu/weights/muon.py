"""Muon: steps along the orthogonalised momentum, so that all directions of a weight matrix move alike.

    M ← μ M + (1 − μ) G,    N = (1 − μ) G + μ M,    θ ← θ − η 0.2 √max(m, n) O(N)

G is the gradient of one weight as a matrix (m, n): output channels by all that goes into one; a vector is a matrix of
one row. O replaces the singular values of N by numbers near 1 (0.68 to 1.21 for all but the smallest): five times

    X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X,    X_0 = N / ‖N‖_F,    (a, b, c) = (3.4445, −4.7750, 2.0315)

O(N) is the steepest direction under the spectral norm (Bernstein & Newhouse, arXiv 2409.20325); polynomial and Nesterov
momentum are Jordan's (Muon, 2024); the factor, with which a weight moves by 0.2 η on the root mean square whatever the
shape of its matrix, is that of Liu et al., arXiv 2502.16982. `torch.optim.Muon` refuses what is no matrix, such as the
kernels of convolutions, and iterates in bfloat16, for which a processor may have no instructions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Muon", "orthogonalised"]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MOMENTUM = 0.9
ROOT_MEAN_SQUARE = 0.2  # of an update at a rate of 1
SMALLEST_NORM = 1e-30  # of a gradient that is nothing


def orthogonalised(matrix: Tensor) -> Tensor:
    """O of a ``matrix`` ``(m, n)``.

    The iteration goes on in the smaller of X Xᵀ and Xᵀ X alone: X_k = P_k X_0 with P_k a polynomial in it, which
    commutes with it.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalised(matrix.T).T
    x = matrix / matrix.norm().clamp(min=SMALLEST_NORM)
    a, b, c = COEFFICIENTS
    gram, identity = x @ x.T, torch.eye(len(x), dtype=x.dtype, device=x.device)
    product = identity
    for _ in range(ITERATIONS):
        factor = a * identity + b * gram + c * gram @ gram
        product, gram = factor @ product, factor @ gram @ factor
    return product @ x


class Muon(torch.optim.Optimizer):
    """For every parameter that has a gradient; ``lr`` is η."""

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step down the gradients in ``grad``; there is no ``closure``."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group["lr"])

    def _move(self, parameter: Tensor, gradient: Tensor, rate: float) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        ahead = gradient.lerp(momentum, MOMENTUM)
        matrix = ahead.reshape(1, -1) if ahead.ndim < 2 else ahead.flatten(1)
        scale = ROOT_MEAN_SQUARE * math.sqrt(max(matrix.shape))
        parameter.sub_(orthogonalised(matrix).view_as(parameter), alpha=rate * scale)
