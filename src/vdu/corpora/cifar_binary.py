"""CIFAR-10's binary version: records of one label byte and 3 × 32 × 32 pixel bytes (Krizhevsky, 2009).

The Python version of the same corpus consists of pickles, which can run any program on reading: it is refused.
"""

from __future__ import annotations

from pathlib import Path

import torch

from vdu.corpora.corpus import CorpusFacts, FilesRead
from vdu.errors import VduError
from vdu.hashing import files_sha256

__all__ = ["find_cifar_binary", "read_cifar_binary", "refuse_pickles"]

BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
PIXELS = 3 * 32 * 32


def find_cifar_binary(folder: Path, split: str) -> list[Path]:
    """The files of a split in ``folder`` or its ``cifar-10-batches-bin``; `VduError` where some are missing."""
    for place in (folder, folder / "cifar-10-batches-bin"):
        paths = [place / f"{name}.bin" for name in BATCHES[split]]
        missing = [path.name for path in paths if not path.is_file()]
        if not missing:
            return paths
        if len(missing) < len(paths):
            raise VduError(f"{place} lacks {', '.join(missing)}: unpack the whole binary version")
    return []


def refuse_pickles(folder: Path) -> None:
    """Raise `VduError` where the folder holds CIFAR's Python version."""
    for place in (folder, folder / "cifar-10-batches-py"):
        if any((place / name).is_file() for names in BATCHES.values() for name in names):
            raise VduError(
                f"{place} holds CIFAR's Python version, which is pickles and not safe to read: "
                "give the binary version (data_batch_1.bin …) or parquet"
            )


def read_cifar_binary(paths: list[Path], facts: CorpusFacts) -> FilesRead:
    """All records of ``paths``. Raises `VduError` for a file that does not consist of whole records."""
    parts = []
    for path in paths:
        raw = path.read_bytes()
        if not raw or len(raw) % (1 + PIXELS):
            raise VduError(
                f"{path} is cut short: it is not a whole number of {1 + PIXELS}-byte records; fetch it again"
            )
        parts.append(torch.frombuffer(bytearray(raw), dtype=torch.uint8).reshape(-1, 1 + PIXELS))
    records = torch.cat(parts)
    assert facts.class_names is not None
    images = records[:, 1:].reshape(-1, 3, 32, 32).contiguous()
    return FilesRead(images, records[:, 0].long(), facts.class_names, files_sha256(paths))
