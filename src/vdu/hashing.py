"""One SHA-256 for several files, in the order in which they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

__all__ = ["files_sha256"]


def files_sha256(paths: Iterable[Path], names_below: Path | None = None) -> str:
    """Of the bytes of all files; with ``names_below`` also of their paths from there, where these are the labels."""
    digest = hashlib.sha256()
    for path in paths:
        if names_below is not None:
            digest.update(f"{path.relative_to(names_below).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
