"""Stratified times: one draw in each of K equal parts of the range, so that a mean over them varies less.

share_k = (k + u_k) / K,   u_k ~ U[0, 1),   k = 0 … K − 1,   t_k = ⌊share_k T⌋
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["stratified_shares", "times_at"]


def stratified_shares(parts: int, g: torch.Generator, each: int = 1) -> Tensor:
    """Shares of the range ``(parts · each,)`` in [0, 1]: ``each`` in the first part, then ``each`` in the second, …"""
    return (torch.arange(parts).repeat_interleave(each) + torch.rand(parts * each, generator=g)) / parts


def times_at(share: Tensor, timesteps: int) -> Tensor:
    """Integer times in 0 … ``timesteps`` − 1, of the shape of ``share``."""
    return (share * timesteps).long().clamp(max=timesteps - 1)  # (K − 1 + u) / K may round up to 1
