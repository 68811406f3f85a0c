"""Labelled image corpora that models are trained on, one file a format.

``mnist``, ``fashion-mnist``: IDX. ``cifar10``: parquet, the binary version, or a folder. ``tiny-imagenet-20``: parquet
or a folder.
"""

from __future__ import annotations

from pathlib import Path

from vdu.corpora.cifar_binary import find_cifar_binary, read_cifar_binary, refuse_pickles
from vdu.corpora.corpus import Corpus, CorpusFacts, FilesRead
from vdu.corpora.idx import read_idx_corpus
from vdu.corpora.image_folder import find_image_folder, read_image_folder
from vdu.corpora.parquet import find_parquet, read_parquet
from vdu.errors import VduError, nearest

__all__ = ["Corpus", "load_corpus"]

_CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FASHION_CLASSES = ("tshirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
_DIGITS = tuple(str(d) for d in range(10))

_FACTS = {
    facts.name: facts
    for facts in (
        CorpusFacts("mnist", (1, 28, 28), 10, _DIGITS, redistributable=True, mirror_keeps_class=False),
        CorpusFacts("fashion-mnist", (1, 28, 28), 10, _FASHION_CLASSES, redistributable=True, mirror_keeps_class=True),
        CorpusFacts("cifar10", (3, 32, 32), 10, _CIFAR10_CLASSES, redistributable=False, mirror_keeps_class=True),
        CorpusFacts("tiny-imagenet-20", (3, 64, 64), 20, None, redistributable=False, mirror_keeps_class=True),
    )
}


def _read_colour(facts: CorpusFacts, folder: Path, split: str) -> FilesRead:
    """In whichever of the formats the folder holds."""
    binary_too = facts.name == "cifar10"
    parquet = find_parquet(folder, split)
    if parquet:
        return read_parquet(parquet, facts)
    binary = find_cifar_binary(folder, split) if binary_too else []
    if binary:
        return read_cifar_binary(binary, facts)
    images = find_image_folder(folder, split)
    if images:
        return read_image_folder(images, facts)
    if binary_too:
        refuse_pickles(folder)
    also = "CIFAR's binary version, " if binary_too else ""
    raise VduError(
        f"{folder} has no {split} part of {facts.name}: give --data {split}.parquet, {also}or {split}/<class>/*"
    )


def load_corpus(name: str, folder: Path, split: str = "train") -> Corpus:
    """Read a corpus from ``folder``. ``split`` is ``train`` or ``test``.

    Raises `VduError` for an unknown name and for files that are missing, broken or of something else.
    """
    if name not in _FACTS:
        raise VduError(f"unknown corpus {name!r}: {nearest(name, _FACTS)}")
    if not folder.is_dir():
        raise VduError(f"no folder {folder}: give --data the folder of your copy of {name}")
    facts = _FACTS[name]
    read = (read_idx_corpus if facts.shape[0] == 1 else _read_colour)(facts, folder, split)
    return Corpus.checked(facts, read)
