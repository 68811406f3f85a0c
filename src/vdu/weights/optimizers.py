"""Optimisers by the names that settings use: Adam (Kingma & Ba, arXiv 1412.6980) and `vdu.weights.muon`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from vdu.weights.muon import Muon

__all__ = ["OPTIMIZERS", "OptimizerName"]

OptimizerName = Literal["adam", "muon"]
OPTIMIZERS: dict[OptimizerName, Callable[..., torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "muon": Muon}
