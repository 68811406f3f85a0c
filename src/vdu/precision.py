"""bfloat16 forward passes where they are asked for; backward passes and optimiser steps stay outside.

``auto`` is bfloat16 where the device has instructions for it, float32 elsewhere: a CPU without them takes ten to twenty
times as long for a convolution in bfloat16.
"""

from __future__ import annotations

import torch
from torch import nn

from vdu.errors import VduError

__all__ = ["PRECISIONS", "autocast", "resolve_precision"]

PRECISIONS = ("auto", "bf16", "fp32")
CPU_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def _computes_bfloat16(device: torch.device) -> bool:
    if device.type == "cpu":
        capabilities = getattr(torch.cpu, "get_capabilities", None)  # not in every torch that we accept
        return capabilities is not None and any(capabilities().get(name) for name in CPU_BFLOAT16)
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def resolve_precision(precision: str, device: str | torch.device = "cpu") -> str:
    """``bf16`` or ``fp32``, for ``auto`` by what ``device`` computes. Raises `VduError` for anything else."""
    if precision not in PRECISIONS:
        raise VduError(f"unknown precision {precision!r}: give {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}")
    if precision == "auto":
        return "bf16" if _computes_bfloat16(torch.device(device)) else "fp32"
    return precision


def autocast(network: nn.Module, precision: str) -> torch.autocast:
    """The context of forward passes of ``network`` in one of `PRECISIONS`."""
    device = next(network.parameters()).device
    return torch.autocast(device.type, torch.bfloat16, enabled=resolve_precision(precision, device) == "bf16")
