"""Forget folders from the user's own copy of a corpus: the first images of a class, as PNG, with their provenance.

For corpora whose images may not be shipped with a model; the same copy gives the same files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from vdu.corpora import Corpus, load_corpus
from vdu.errors import VduError
from vdu.images.image_set import PROVENANCE_FILE
from vdu.output import refuse_existing, replacing

__all__ = ["FORGET_IMAGES", "prepare_forget_folder", "write_class_images"]

FORGET_IMAGES = 100


def write_class_images(corpus: Corpus, class_name: str, count: int, folder: Path) -> list[int]:
    """Write the first ``count`` images of a class (or all, where there are fewer); returns their numbers.

    The file name is the image's number in the corpus. Raises `VduError` for an unknown class.
    """
    numbers: list[int] = corpus.of_class(class_name)[:count].tolist()
    folder.mkdir(parents=True)
    for number in numbers:
        pixels = corpus.images[number].permute(1, 2, 0).squeeze(-1).numpy()
        Image.fromarray(pixels).save(folder / f"{number:05d}.png", optimize=True)
    return numbers


def _write(corpus: Corpus, class_name: str, count: int, folder: Path) -> dict[str, Any]:
    numbers = write_class_images(corpus, class_name, count, folder)
    provenance = {
        "corpus": corpus.name,
        "split": "train",
        "class": class_name,
        "images": len(numbers),
        "numbers": numbers,
        "shape": list(corpus.images.shape[1:]),
        "data_sha256": corpus.sha256,
        "redistributable": corpus.redistributable,
    }
    (folder / PROVENANCE_FILE).write_text(json.dumps(provenance) + "\n")
    return provenance


def prepare_forget_folder(
    corpus_name: str,
    data: Path,
    class_name: str | None,
    out: Path,
    *,
    count: int = FORGET_IMAGES,
    size: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the folder ``out``: ``count`` PNG files and ``provenance.json``, whose content is returned.

    Without a ``class_name`` there is such a folder for each class in ``out``; the last one's provenance is returned.
    ``size``: side in pixels, a divisor of the corpus' own; for models that were trained at less. Raises `VduError` for
    an unknown corpus or class, unusable files, more images than there are, and an ``out`` that exists.
    """
    refuse_existing(out, overwrite, folder=True, sources=(data,))
    corpus = load_corpus(corpus_name, data)
    names = corpus.class_names if class_name is None else (class_name,)
    for name in names:
        available = len(corpus.of_class(name))
        if not 1 <= count <= available:
            raise VduError(f"{corpus_name} has {available} training images of {name}: give --count 1 to {available}")
    if size is not None:
        corpus = corpus.resized(size)
    with replacing(out) as beside:
        written = [_write(corpus, name, count, beside / name if class_name is None else beside) for name in names]
    return written[-1]
