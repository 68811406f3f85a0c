"""Training state and records on disk: safetensors and JSON, written beside and renamed into place, never half.

An optimiser's state is flattened to ``optimizer.<parameter index>.<field>``; no pickle is read or written.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vdu.errors import VduError

__all__ = [
    "load_state",
    "read_tensors",
    "refuse_existing",
    "replacing",
    "require_space",
    "save_state",
    "write_record",
    "write_tensors",
]


def _nearest_folder(path: Path) -> Path:
    """The first folder above ``path`` that exists."""
    return next(parent for parent in path.absolute().parents if parent.is_dir())


def refuse_existing(target: Path, overwrite: bool, *, folder: bool = False) -> None:
    """Raise `VduError` for an output that exists (unless it is to be replaced) or that could not be written."""
    if target.exists() and not overwrite:
        raise VduError(f"{target} exists: choose another --out, or pass --overwrite to replace it")
    if target.exists():
        _refuse_other_kind(target, folder)
    parent = _nearest_folder(target)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise VduError(f"{parent} may not be written to: choose another --out")


def _refuse_other_kind(target: Path, folder: bool) -> None:
    if target.is_dir() != folder:
        kind, wanted = ("file", "folder") if folder else ("folder", "file")
        raise VduError(f"{target} is a {kind} and a {wanted} is to be written: choose another --out")


def require_space(target: Path, needed_bytes: int) -> None:
    """Raise `VduError` when the disk of ``target`` has less than ``needed_bytes`` free."""
    free_bytes = shutil.disk_usage(_nearest_folder(target)).free
    if free_bytes < needed_bytes:
        sizes = f"{needed_bytes / 1e6:,.0f} MB are needed, {free_bytes / 1e6:,.0f} MB free"
        raise VduError(f"no space left on the disk for {target} ({sizes}): free some space and run again")


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a temporary path beside ``target``; rename it over ``target`` only when the block succeeds.

    Works for files and folders. Raises `VduError` when the disk is full, or where a folder would give way to a file or
    a file to a folder; ``target`` is then as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.partial-{os.getpid()}")
    retired = target.with_name(f".{target.name}.old-{os.getpid()}")
    try:
        yield beside
        if target.exists():
            _refuse_other_kind(target, folder=beside.is_dir())
        if target.is_dir():
            target.rename(retired)
        beside.replace(target)
    except Exception as error:
        if retired.exists() and not target.exists():
            retired.rename(target)
        if _is_disk_full(error):
            raise VduError(f"no space left on the disk for {target}: free some space and run again") from error
        raise
    finally:
        for leftover in (beside, retired):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def _is_disk_full(error: BaseException) -> bool:
    """True for ENOSPC, also where safetensors has wrapped it in a text."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return isinstance(error, (SafetensorError, OSError)) and "No space left" in str(error)


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write one JSON file atomically. What could not be measured is None: NaN is no JSON, and a `ValueError` here."""
    with replacing(path) as beside:
        beside.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write one safetensors file atomically."""
    with replacing(path) as beside:
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, str(beside), metadata=metadata)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file; `VduError` where it cannot be read."""
    try:
        tensors = load_file(str(path))
        with safe_open(str(path), framework="pt") as file:
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise VduError(f"cannot read {path} as safetensors ({error}): give a .safetensors file") from error


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


def load_state(
    path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, settings_hashes: Collection[str]
) -> int:
    """Restore what `save_state` wrote, in place; returns the number of finished steps.

    Raises `VduError` where the state belongs to a run with other settings than those.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("settings_hash") not in settings_hashes:
        raise VduError(f"{path} is the state of a run with other settings: remove it or choose another output folder")
    for name, module in modules.items():
        module.load_state_dict(module.state_dict() | {k: tensors[f"{name}.{k}"] for k in _moving(module)})
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, field = key.split(".")
            state.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(metadata["step"])
