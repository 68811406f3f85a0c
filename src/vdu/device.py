"""Where networks compute: what is asked for, or the best there is."""

from __future__ import annotations

import torch

from vdu.errors import VduError

__all__ = ["resolve_device"]


def resolve_device(device: str | None) -> torch.device:
    """``device``, or the best there is where None. Raises `VduError` for one that this machine does not have."""
    from accelerate import PartialState

    try:
        place = torch.device(device) if device else PartialState().device
        torch.zeros(1, device=place).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise VduError(f"device {device!r} cannot be used here: give cpu, cuda or mps, or leave it out") from error
    return place
