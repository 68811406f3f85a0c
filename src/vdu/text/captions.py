"""What each forget image shows, in words: the image-folder convention's ``metadata.csv`` or ``metadata.jsonl``.

One row an image with ``file_name`` (relative to the folder) and ``text``; the same layout that `datasets` reads. Rows
of a `datasets.Dataset` bring their ``text`` themselves.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from vdu.backbone import Backbone
from vdu.errors import VduError
from vdu.images.image_set import CAPTION_FILES, SUFFIXES, ImageSet

__all__ = ["forget_captions", "read_captions", "retain_captions"]

EXAMPLES = 3


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                return list(csv.DictReader(file))
            return [json.loads(line) for line in file if line.strip()]
    except (OSError, ValueError, csv.Error) as error:
        said = f"cannot read the captions {path} ({type(error).__name__})"
        raise VduError(f"{said}: write columns file_name and text, one row an image") from error


def read_captions(folder: Path) -> dict[Path, str] | None:
    """Captions by image path; None where the folder has no caption file.

    Raises `VduError` for two caption files, a row without ``file_name`` or ``text``, and a name given twice.
    """
    found = [folder / name for name in CAPTION_FILES if (folder / name).is_file()]
    if not found:
        return None
    if len(found) > 1:
        raise VduError(f"{folder} has both {' and '.join(CAPTION_FILES)}: keep one")
    captions: dict[Path, str] = {}
    for number, row in enumerate(_rows(found[0]), 1):
        name, text = (row.get(key) if isinstance(row, dict) else None for key in ("file_name", "text"))
        if not isinstance(name, str) or not isinstance(text, str) or not name:
            raise VduError(f"{found[0]}: row {number} has no file_name or no text: each image needs both")
        if folder / name in captions:
            raise VduError(f"{found[0]}: {name} has two captions: keep one")
        captions[folder / name] = text.strip()
    return captions


def _names(paths: Sequence[Path], folder: Path) -> str:
    shown = ", ".join(str(p.relative_to(folder) if p.is_relative_to(folder) else p) for p in paths[:EXAMPLES])
    return f"{shown} and {len(paths) - EXAMPLES} more" if len(paths) > EXAMPLES else shown


def _of_folder(folder: Path, files: Sequence[Path]) -> tuple[str, ...] | None:
    captions = read_captions(folder)
    if captions is None:
        return None
    absent = [path for path in captions if not path.is_file() or path.suffix.lower() not in SUFFIXES]
    if absent:
        raise VduError(f"the captions of {folder} name what is no image there: {_names(absent, folder)}")
    bare = [path for path in files if path not in captions]
    if bare:
        raise VduError(f"images in {folder} without a caption: {_names(bare, folder)}; caption all of them or none")
    return tuple(captions[path] for path in files)


def _of_rows(rows: Any) -> tuple[str, ...] | None:
    found = (row.get("text") if isinstance(row, dict) else None for row in rows)
    texts = tuple(text for text in found if isinstance(text, str))
    if texts and len(texts) < len(rows):
        raise VduError(f"{len(rows) - len(texts)} of {len(rows)} rows have no text: caption all of them or none")
    return texts or None


def _captions(given: Sequence[str], source: Any, images: ImageSet) -> tuple[str, ...]:
    """Those ``given`` (none, one for all, or one each) before the source's own; empty ones where there are none."""
    if given:
        if len(given) not in (1, len(images)):
            raise VduError(f"{len(given)} prompts for {len(images)} forget images: give one for all or one each")
        return tuple(given) * len(images) if len(given) == 1 else tuple(given)
    own = None
    if isinstance(source, (str, Path)) and Path(source).is_dir():
        own = _of_folder(Path(source), images.files)
    elif not images.files and not isinstance(source, (Tensor, Image.Image)):
        own = _of_rows(source)
    return own if own is not None else ("",) * len(images)


def forget_captions(backbone: Backbone, source: Any, images: ImageSet) -> tuple[str, ...]:
    """A caption for each of ``images``, which were read from ``source``.

    ``backbone.prompts.forget`` goes before what the source says. A model that takes no text has empty captions.
    Raises `VduError` for captions and images that do not match, and for captions that the model knows no word of.
    """
    if backbone.prompts is None:
        return ("",) * len(images)
    captions = _captions(backbone.prompts.forget, source, images)
    backbone.sample_from(replace(backbone.prompts, forget=tuple(dict.fromkeys(captions))))
    return captions


def retain_captions(backbone: Backbone, source: Any, images: ImageSet | None) -> tuple[str, ...]:
    """A caption for each image to keep: the source's own, else empty. Raises `VduError` as for forget images."""
    if images is None:
        return ()
    captions = ("",) * len(images) if backbone.prompts is None else _captions((), source, images)
    backbone.condition(captions)
    return captions
