"""Parquet in the hub's layout: a column ``img`` or ``image`` of encoded pictures and a column ``label`` of numbers.

The files of a split are ``train.parquet`` or ``train-00000-of-00001.parquet`` and so on, in the folder itself or in
``data/`` or ``plain_text/`` as the hub has them. Class names come from the features that `datasets` writes into them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vdu.corpora.corpus import CorpusFacts, FilesRead
from vdu.corpora.decoding import decode
from vdu.errors import VduError
from vdu.hashing import files_sha256

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

__all__ = ["find_parquet", "read_parquet"]

SUBFOLDERS = (".", "data", "plain_text")
SPLIT_NAMES = {"train": ("train",), "test": ("test", "valid", "validation")}
IMAGE_COLUMNS = ("img", "image")
ROWS_AT_ONCE = 1000


def find_parquet(folder: Path, split: str) -> list[Path]:
    """The files of a split in order; empty where there are none. Raises `VduError` for an incomplete set."""
    for place in (folder / name for name in SUBFOLDERS):
        for stem in SPLIT_NAMES[split]:
            if (place / f"{stem}.parquet").is_file():
                return [place / f"{stem}.parquet"]
            shards = sorted(place.glob(f"{stem}-*-of-*.parquet"))
            if shards:
                _refuse_incomplete(shards)
                return shards
    return []


def _refuse_incomplete(shards: list[Path]) -> None:
    wanted = re.search(r"-of-(\d+)\.parquet$", shards[0].name)
    if wanted is None or int(wanted[1]) != len(shards):
        raise VduError(f"{shards[0].parent} has {len(shards)} of the files that {shards[0].name} belongs to: fetch all")


def _open(path: Path) -> ParquetFile:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise VduError(f"{path} is parquet, which needs a package: pip install pyarrow") from error
    try:
        return ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise VduError(f"{path} is not a readable parquet file: fetch it again") from error


def _class_names(file: ParquetFile, facts: CorpusFacts, path: Path) -> tuple[str, ...]:
    metadata = file.schema_arrow.metadata or {}
    try:
        label = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]
        return tuple(str(name) for name in label["names"])
    except (KeyError, TypeError, ValueError):
        if facts.class_names is None:
            raise VduError(f"{path} does not name its classes: write it with `datasets` and a ClassLabel") from None
        return facts.class_names


def _image_column(file: ParquetFile, path: Path) -> str:
    columns = file.schema_arrow.names
    found = [name for name in IMAGE_COLUMNS if name in columns]
    if not found or "label" not in columns:
        raise VduError(f"{path} has the columns {', '.join(columns)}: it needs img or image, and label")
    return found[0]


def _rows(file: ParquetFile, path: Path) -> list[tuple[Any, Any]]:
    from pyarrow import ArrowException

    column = _image_column(file, path)
    rows: list[tuple[Any, Any]] = []
    try:
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=[column, "label"]):
            rows += zip(batch.column(column).to_pylist(), batch.column("label").to_pylist(), strict=True)
    except (ArrowException, OSError) as error:
        raise VduError(f"{path} breaks off after {len(rows)} rows: fetch it again") from error
    return rows


def read_parquet(paths: list[Path], facts: CorpusFacts) -> FilesRead:
    """All rows of ``paths``. Raises `VduError` that names the file and row of what cannot be used."""
    images: list[np.ndarray] = []
    labels: list[int] = []
    names: tuple[str, ...] | None = None
    for path in paths:
        with _open(path) as file:
            found = _class_names(file, facts, path)
            if names not in (None, found):
                raise VduError(f"{path} names other classes than the files before it: fetch all of one corpus")
            names = found
            for number, (cell, label) in enumerate(_rows(file, path)):
                where = f"row {number} of {path}"
                encoded = cell.get("bytes") if isinstance(cell, dict) else None
                if encoded is None or not isinstance(label, int):
                    raise VduError(f"{where} lacks the image's bytes or a whole number as label: write both into it")
                images.append(decode(encoded, facts.shape, where))
                labels.append(label)
    if not images or names is None:
        raise VduError(f"{paths[0]} has no rows: fetch it again")
    return FilesRead(torch.from_numpy(np.stack(images)), torch.tensor(labels), names, files_sha256(paths))
