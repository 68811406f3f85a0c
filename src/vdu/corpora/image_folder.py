"""A folder ``train/<class>/*`` (and ``test/<class>/*``) of pictures; labels number the classes by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from vdu.corpora.corpus import CorpusFacts, FilesRead
from vdu.corpora.decoding import decode
from vdu.errors import VduError
from vdu.hashing import files_sha256
from vdu.images.image_set import SUFFIXES

__all__ = ["find_image_folder", "read_image_folder"]

SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "valid", "validation", "val")}


def _classes(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def find_image_folder(folder: Path, split: str) -> Path | None:
    """The folder of a split that has class folders, or None."""
    candidates = (folder / name for name in SPLIT_FOLDERS[split])
    return next((path for path in candidates if path.is_dir() and _classes(path)), None)


def read_image_folder(folder: Path, facts: CorpusFacts) -> FilesRead:
    """All pictures of all class folders, by class and file name. Raises `VduError` that names an unusable file.

    Classes are numbered by name, which for CIFAR-10 is the official order.
    """
    images: list[np.ndarray] = []
    labels: list[int] = []
    paths: list[Path] = []
    names = _classes(folder)
    if facts.class_names is not None and tuple(names) != facts.class_names:
        raise VduError(
            f"{folder} has the classes {', '.join(names)}: {facts.name}'s are {', '.join(facts.class_names)}"
        )
    for label, name in enumerate(names):
        found = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not found:
            raise VduError(f"{folder / name} has no images: give every class its own, or remove the folder")
        images += [decode(path.read_bytes(), facts.shape, str(path)) for path in found]
        labels += [label] * len(found)
        paths += found
    return FilesRead(
        torch.from_numpy(np.stack(images)), torch.tensor(labels), tuple(names), files_sha256(paths, names_below=folder)
    )
