"""Gradients of one loss, stepped down, or of several of the same parameters, taken apart: lists in their order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["descend", "gradients", "inner", "trained", "write_gradients"]


def trained(network: nn.Module) -> list[Tensor]:
    """The parameters that require gradients."""
    return [p for p in network.parameters() if p.requires_grad]


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, longest: float = 1.0) -> Tensor:
    """One step of ``optimizer`` down ``loss``, its gradient cut to ``longest``; returns how long that was before."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], longest)
    optimizer.step()
    return norm


def gradients(loss: Tensor, parameters: Sequence[Tensor], keep_graph: bool = False) -> list[Tensor]:
    """∇ of a scalar ``loss``; zeros for parameters that it does not depend on. ``grad`` is left alone."""
    found = torch.autograd.grad(loss, parameters, retain_graph=keep_graph, allow_unused=True)
    return [torch.zeros_like(p) if f is None else f for p, f in zip(parameters, found, strict=True)]


def inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """⟨a, b⟩ over all tensors."""
    return sum(float((x * y).sum()) for x, y in zip(a, b, strict=True))


def write_gradients(parameters: Sequence[Tensor], a: Sequence[Tensor], b: Sequence[Tensor], scale: float) -> None:
    """Leave ``a + scale · b`` in ``grad``."""
    for parameter, x, y in zip(parameters, a, b, strict=True):
        parameter.grad = x.add(y, alpha=scale)
