"""Emoji, fully crossed: every object in each of five open styles, rendered from the npm packages that carry them.

A folder of unpacked packages goes in (`npm pack NAME`, then `tar xzf`); ``STYLE/HEXCODE.png`` and ``metadata.csv`` (the
image-folder convention: file_name, text; beside them style, object, kind) come out, and CLIP's byte-pair merges, which
the tokenizer of a model of these pictures is made of. An emoji is taken when all five styles have it. ``kind`` is the
class of object, for the classes that a small network can tell apart; else empty.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vdu.errors import VduError
from vdu.hashing import files_sha256
from vdu.output import refuse_existing, replacing

__all__ = ["KINDS", "LICENCES", "MERGES_FILE", "METADATA", "STYLES", "Emoji", "prepare_emoji", "read_emoji"]

METADATA = "metadata.csv"
MERGES_FILE = "bpe_simple_vocab_16e6.txt.gz"
SIDE = 64
VARIATION = "fe0f"
ICON_PACKAGES = {
    "twemoji": "@iconify-json/twemoji",
    "noto": "@iconify-json/noto",
    "openmoji": "@iconify-json/openmoji",
    "fluent-flat": "@iconify-json/fluent-emoji-flat",
}
PICTURE_PACKAGES = {"fluent-3d": "@lobehub/fluent-emoji-3d"}
LABELS = "emojibase-data"
STYLES = (*ICON_PACKAGES, *PICTURE_PACKAGES)
LICENCES = {
    "twemoji": "CC-BY-4.0",
    "noto": "Apache-2.0",
    "openmoji": "CC-BY-SA-4.0",
    "fluent-flat": "MIT",
    "fluent-3d": "MIT",
}
# Names of subgroups of the emoji standard, as in emojibase's meta/groups.json; the faces are several of them.
KINDS = {
    "face": "face-",
    "heart": "heart",
    "mammal": "animal-mammal",
    "fruit": "food-fruit",
    "prepared-food": "food-prepared",
    "transport": "transport-ground",
    "time": "time",
    "sky": "sky-weather",
}


@dataclass(frozen=True)
class Emoji:
    """``images (N, 3, S, S)`` uint8 with their ``styles``, ``objects`` (names) and ``kinds`` (empty: none)."""

    images: Tensor
    styles: tuple[str, ...]
    objects: tuple[str, ...]
    kinds: tuple[str, ...]
    files: tuple[str, ...]
    sha256: str


def _plain(hexcode: str) -> str:
    return "-".join(part for part in hexcode.lower().split("-") if part != VARIATION)


def _packages(data: Path) -> dict[str, Path]:
    """The folder of each package below ``data``, by the name in its package.json."""
    found: dict[str, Path] = {}
    for path in sorted(data.glob("**/package.json")):
        try:
            found.setdefault(str(json.loads(path.read_text()).get("name")), path.parent)
        except (OSError, ValueError):
            continue
    missing = [n for n in (*ICON_PACKAGES.values(), *PICTURE_PACKAGES.values(), LABELS) if n not in found]
    if missing:
        raise VduError(f"{data} lacks {missing[0]}: `npm pack {missing[0]}` there and unpack it (tar xzf)")
    return found


def _kind(subgroup: str) -> str:
    return next((kind for kind, name in KINDS.items() if subgroup.startswith(name)), "")


def _objects(folder: Path) -> list[tuple[str, str, str]]:
    """``(hexcode, name, kind)`` of all base emoji, in the standard's order."""
    rows = json.loads((folder / "en" / "data.json").read_text())
    subgroups = json.loads((folder / "meta" / "groups.json").read_text())["subgroups"]
    ordered = sorted((r for r in rows if "subgroup" in r), key=lambda r: r["order"])
    return [(_plain(r["hexcode"]), r["label"], _kind(subgroups[str(r["subgroup"])])) for r in ordered]


def _on_white(picture: Image.Image) -> Image.Image:
    """Transparent parts made white, at the corpus' size."""
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)


def _icon_drawer(folder: Path) -> Callable[[str], Image.Image | None]:
    """Draws a glyph of an icon set (SVG bodies by name, names by code)."""
    try:
        import resvg_py
    except ImportError as error:
        raise VduError("rendering emoji needs resvg-py: pip install resvg-py") from error
    icons: dict[str, Any] = json.loads((folder / "icons.json").read_text())
    names = {_plain(c): n for c, n in json.loads((folder / "chars.json").read_text()).items()}

    def draw(code: str) -> Image.Image | None:
        name = names.get(code)
        icon = icons["icons"].get(icons["aliases"].get(name, {}).get("parent", name)) if name else None
        if icon is None:
            return None
        size = [icon.get(key, icons.get(key, 16)) for key in ("width", "height")]
        svg = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        svg += f'viewBox="0 0 {size[0]} {size[1]}">{icon["body"]}</svg>'
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=4 * SIDE, height=4 * SIDE))
        return _on_white(Image.open(io.BytesIO(png)))

    return draw


def _picture_drawer(folder: Path) -> Callable[[str], Image.Image | None]:
    """Reads a picture by its code."""
    paths = {_plain(path.stem): path for path in sorted((folder / "assets").glob("*.webp"))}
    return lambda code: _on_white(Image.open(paths[code])) if code in paths else None


def _drawn(data: Path) -> Iterator[tuple[str, str, str, dict[str, Image.Image]]]:
    """Code, name, kind and pictures by style of every emoji that all styles have."""
    packages = _packages(data)
    drawers = {style: _icon_drawer(packages[name]) for style, name in ICON_PACKAGES.items()}
    drawers |= {style: _picture_drawer(packages[name]) for style, name in PICTURE_PACKAGES.items()}
    for code, name, kind in _objects(packages[LABELS]):
        pictures = {}
        for style, draw in drawers.items():
            picture = draw(code)
            if picture is None:
                break
            pictures[style] = picture
        else:
            yield code, name, kind, pictures


def _merges(packages: Path) -> Path:
    found = sorted(packages.glob(f"**/{MERGES_FILE}"))
    if not found:
        how = "`pip download open_clip_torch --no-deps` there and unzip the wheel"
        raise VduError(f"{packages} lacks CLIP's merges ({MERGES_FILE}): {how}")
    return found[0]


def prepare_emoji(packages: Path, out: Path, overwrite: bool = False) -> int:
    """Render all styles of all objects into the folder ``out``; returns the number of pictures.

    Raises `VduError` where a package is missing below ``packages`` or ``out`` exists.
    """
    refuse_existing(out, overwrite, folder=True, sources=(packages,))
    merges, rows = _merges(packages), []
    with replacing(out) as beside:
        for style in STYLES:
            (beside / style).mkdir(parents=True)
        for code, name, kind, pictures in _drawn(packages):
            for style, picture in pictures.items():
                file = f"{style}/{code}.png"
                picture.save(beside / file)
                rows.append((file, f"a {name} in {style.replace('-', ' ')} style", style, name, kind))
        shutil.copyfile(merges, beside / MERGES_FILE)
        with (beside / METADATA).open("w", newline="", encoding="utf-8") as f:
            writer = csv.writer(f)
            writer.writerow(("file_name", "text", "style", "object", "kind"))
            writer.writerows(rows)
    return len(rows)


def read_emoji(folder: Path, size: int = SIDE) -> Emoji:
    """The corpus that `prepare_emoji` wrote, at ``size`` pixels a side (a divisor of 64).

    Raises `VduError` for a folder of something else.
    """
    path = folder / METADATA
    if not path.is_file():
        raise VduError(f"{folder} has no {METADATA}: render the corpus with `vdu data emoji`")
    with path.open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    if not rows or not {"file_name", "style", "object", "kind"} <= rows[0].keys():
        raise VduError(f"{path} is not that of an emoji corpus: render it with `vdu data emoji`")
    pictures = []
    for row in rows:
        with Image.open(folder / row["file_name"]) as picture:
            pictures.append(np.asarray(picture.convert("RGB").resize((size, size), Image.Resampling.BOX)))
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    files = tuple(row["file_name"] for row in rows)
    digest = files_sha256([folder / f for f in files], names_below=folder)
    styles, objects, kinds = (tuple(row[key] for row in rows) for key in ("style", "object", "kind"))
    return Emoji(images, styles, objects, kinds, files, digest)
