"""Tensors and training state on disk, as safetensors.

An optimiser's state is flattened to ``optimizer.<parameter index>.<field>``; no pickle is read or written.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vdu.errors import VduError
from vdu.output import replacing

__all__ = ["check_state", "load_state", "open_tensors", "read_tensors", "save_state", "write_tensors"]


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write one safetensors file atomically."""
    with replacing(path) as beside:
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, str(beside), metadata=metadata)


def open_tensors(path: Path) -> Any:
    """A safetensors file whose tensors are not read yet; `VduError` where it cannot be read."""
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise VduError(f"cannot read {path} as safetensors ({error}): give a .safetensors file") from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file; `VduError` where it cannot be read."""
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def _moving(module: nn.Module) -> dict[str, Tensor]:
    """What a run changes. Frozen parameters are the model's, whose hash is in the settings, and may be shared."""
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in module.state_dict().items() if name not in frozen}


def save_state(
    path: Path, step: int, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, settings_hash: str
) -> None:
    """Write everything that a run needs to go on after ``step`` finished steps."""
    tensors = {f"{name}.{k}": v for name, module in modules.items() for k, v in _moving(module).items()}
    for index, fields in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{field}": value for field, value in fields.items()}
    write_tensors(path, tensors, {"step": str(step), "settings_hash": settings_hash})


def check_state(path: Path, settings_hashes: Collection[str], remove: Path | str = "it") -> None:
    """Raise `VduError` for a state that a run with those settings cannot go on from; nothing but its head is read.

    ``remove``: what is to be removed then.
    """
    if not path.exists():
        return
    try:
        with safe_open(str(path), framework="pt") as file:
            found = (file.metadata() or {}).get("settings_hash")
    except (SafetensorError, OSError) as error:
        raise VduError(f"{path} is no state of a run ({error}): remove {remove} or choose another folder") from error
    if found not in settings_hashes:
        raise VduError(f"{path} is the state of a run with other settings: remove {remove} or choose another folder")


def load_state(
    path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, settings_hashes: Collection[str]
) -> int:
    """Restore what `save_state` wrote, in place; returns the number of finished steps.

    Raises `VduError` where the state belongs to a run with other settings than those.
    """
    check_state(path, settings_hashes)
    tensors, metadata = read_tensors(path)
    for name, module in modules.items():
        module.load_state_dict(module.state_dict() | {k: tensors[f"{name}.{k}"] for k in _moving(module)})
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, field = key.split(".")
            state.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(metadata["step"])
