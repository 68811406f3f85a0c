"""One SHA-256 for several files, in the order in which they are read, for several tensors, by name, or of a source."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

__all__ = ["files_sha256", "source_sha256", "tensors_sha256"]


def files_sha256(paths: Iterable[Path], names_below: Path | None = None) -> str:
    """Of the bytes of all files; with ``names_below`` also of their paths from there, where these are the labels."""
    digest = hashlib.sha256()
    for path in paths:
        if names_below is not None:
            digest.update(f"{path.relative_to(names_below).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hash of names and values, whatever precision and device they are in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def source_sha256(function: Callable[..., Any]) -> str:
    """Of the file that a function, or the class of a callable, is written in; what that imports is not hashed."""
    while isinstance(function, partial):
        function = function.func
    function = inspect.unwrap(function)  # of a decorator as torch.no_grad
    written = function if inspect.isroutine(function) else type(function)
    try:
        path = inspect.getsourcefile(written)
    except TypeError:  # built in
        path = None
    return files_sha256([Path(path)]) if path and Path(path).is_file() else "not hashed: no source file"
