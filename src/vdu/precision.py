"""bfloat16 forward passes where they are asked for; backward passes and optimiser steps stay outside."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["autocast"]


def autocast(network: nn.Module, precision: str) -> torch.autocast:
    """The context of forward passes of ``network``; ``precision`` is ``bf16`` or ``fp32``."""
    device = next(network.parameters()).device
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
