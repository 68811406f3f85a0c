"""A set of images as one tensor ``(N, C, H, W)`` in [-1, 1]: D_f, what a model must never produce again, or D_r.

Accepts a folder, a list of files, a tensor, or any sequence of PIL images or ``{"image": PIL}`` rows (`datasets`).
"""

from __future__ import annotations

import hashlib
import os
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from vdu.errors import VduError

__all__ = [
    "CAPTION_FILES",
    "PROVENANCE_FILE",
    "SUFFIXES",
    "ImageSet",
    "image_sha256",
    "image_to_tensor",
    "load_image_set",
    "to_bytes",
]

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
CAPTION_FILES = ("metadata.csv", "metadata.jsonl")
PROVENANCE_FILE = "provenance.json"
ACCEPTED = "a folder, a list of files or of PIL images, a datasets.Dataset, or a tensor (N, C, H, W) in [-1, 1]"
GREY_TOLERANCE_LEVELS = 8
SMALLEST_UPSCALED_SHARE = 0.5
ASPECT_TOLERANCE = 0.05
NAMED = 5  # of files that something is the matter with


@dataclass(frozen=True)
class ImageSet:
    """``images (N, C, H, W)`` in [-1, 1], their SHA-256, a notice for each kind of conversion, where they are from.

    ``files``: where each image was read from; empty where they did not come from files.
    """

    images: Tensor
    sha256: str
    notices: tuple[str, ...] = ()
    source: str = ""
    files: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def without_copies(self) -> tuple[ImageSet, list[int]]:
        """Each picture once, and their numbers here: what was learned from a copy is not held out."""
        first: dict[str, int] = {}
        for number, image in enumerate(self.images):
            first.setdefault(image_sha256(image), number)
        kept = list(first.values())
        if len(kept) == len(self):
            return self, kept
        notices = (*self.notices, f"{len(self) - len(kept)} images are copies of others and were left out")
        files = tuple(self.files[i] for i in kept) if self.files else ()
        return ImageSet(self.images[kept], image_sha256(self.images[kept]), notices, self.source, files), kept

    def record(self) -> dict[str, Any]:
        """What a result file says of the set."""
        return {"source": self.source, "images": len(self), "sha256": self.sha256, "notices": list(self.notices)}


def image_sha256(images: Tensor) -> str:
    """Of the values of one image, or of many."""
    return hashlib.sha256(images.numpy().tobytes()).hexdigest()


def image_to_tensor(image: Image.Image, shape: tuple[int, int, int], name: str) -> tuple[Tensor, set[str]]:
    """One PIL image as ``(C, H, W)`` in [-1, 1], and the notices of what had to be converted.

    Harmless changes are made (grey to colour, opaque alpha, downscaling, mild upscaling). Raises `VduError` where a
    change would lose or invent content: colour to grey, transparency, another aspect ratio, under half the size.
    """
    channels, height, width = shape
    notices: set[str] = set()
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
        notices.add("images of 16 bits were converted to 8")
    elif image.mode in ("I", "F"):
        raise VduError(f"{name} has 32 bits a pixel, whose range is not known: convert it to 8 bits yourself")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = np.asarray(image.convert("RGBA"))
        if rgba[..., 3].min() < 255:
            raise VduError(f"{name} has transparent pixels: flatten it onto a background first")
        notices.add("an opaque alpha channel was dropped")
    pixels = np.asarray(image.convert("RGB"))
    if channels == 1:
        spread = int(np.ptp(pixels.astype(np.int16), axis=-1).max())
        if spread > GREY_TOLERANCE_LEVELS:
            raise VduError(f"{name} is a colour image and the model is greyscale: convert it to greyscale yourself")
        if image.mode not in ("L", "1"):
            notices.add("grey images in a colour format were converted to one channel")
    elif image.mode in ("L", "1"):
        notices.add("greyscale images were converted to colour")
    picture = Image.fromarray(pixels)
    if picture.size != (width, height):
        _check_size(picture.size, (width, height), name)
        notices.add(f"images of another size were resized to {width}x{height}")
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    array = np.asarray(picture.convert("L") if channels == 1 else picture)
    tensor = torch.from_numpy(array.copy()).float() / 127.5 - 1
    return (tensor.unsqueeze(0) if channels == 1 else tensor.permute(2, 0, 1)), notices


def _check_size(size: tuple[int, int], wanted: tuple[int, int], name: str) -> None:
    said = f"{name} is {size[0]}x{size[1]} and the model makes {wanted[0]}x{wanted[1]}"
    if abs(size[0] / size[1] - wanted[0] / wanted[1]) > ASPECT_TOLERANCE * wanted[0] / wanted[1]:
        raise VduError(f"{said}: crop it to the model's aspect ratio first")
    if size[0] < SMALLEST_UPSCALED_SHARE * wanted[0]:
        raise VduError(f"{said}: too small to enlarge, give larger images")


def _upright(image: Image.Image) -> Image.Image:
    """As its camera was held; as it is where that cannot be read."""
    try:
        return ImageOps.exif_transpose(image)
    except struct.error:
        return image


def _open(path: Path) -> tuple[Image.Image, int]:
    """The first picture of a file, upright, and how many there are in it."""
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image.load()
            return _upright(image), getattr(image, "n_frames", 1)
    except Image.DecompressionBombError as error:
        raise VduError(f"{path} has too many pixels to be read safely: make it smaller yourself") from error
    except Exception as error:  # a damaged file fails in many ways
        raise VduError(
            f"cannot read the image {path} ({type(error).__name__}): repair or remove it"
            " (`vdu unlearn --skip-unreadable` goes on without)"
        ) from error


def _files(folder: Path) -> Iterator[Path]:
    """All files below ``folder``, also broken links, without hidden ones and those of hidden folders."""
    seen: set[Path] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = Path(place).resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files = (Path(place) / name for name in names if not name.startswith("."))
        yield from (file for file in files if file.is_file() or not file.exists())  # no pipe, which would never end


def image_paths(folder: Path, called: str) -> tuple[list[Path], tuple[str, ...]]:
    """The pictures' files below ``folder``, and what is to be said of others. Raises `VduError` where there is none."""
    if not folder.exists():
        raise VduError(f"no folder {folder}: give --{called} a folder of images")
    if not folder.is_dir():
        if folder.suffix.lower() not in SUFFIXES:
            raise VduError(f"{folder} is no folder of images: give --{called} one, unpacked")
        return [folder], ()
    files = sorted(_files(folder))
    images = [p for p in files if p.suffix.lower() in SUFFIXES]
    if not images:
        raise VduError(f"no images in {folder}: give a folder with {', '.join(sorted(SUFFIXES))} files")
    known = (*CAPTION_FILES, PROVENANCE_FILE)
    ignored = len(files) - len(images) - sum(p.parent == folder and p.name in known for p in files)
    return images, ((f"{ignored} files that are not images were ignored",) if ignored else ())


def read_files(
    paths: Iterable[Path], shape: tuple[int, int, int], skip_unreadable: bool, take: Callable[[Tensor], None]
) -> tuple[set[str], tuple[Path, ...]]:
    """Give each picture ``(C, H, W)`` to ``take``; returns notices and which files were read.

    Raises `VduError` for files that cannot be used, when all have been tried.
    """
    notices: set[str] = set()
    skipped: list[str] = []
    kept: list[Path] = []
    unfit: list[tuple[Path, VduError]] = []
    for path in paths:
        image = None
        try:
            image, pictures = _open(path)
            tensor, said = image_to_tensor(image, shape, str(path))
        except VduError as error:
            if image is None and skip_unreadable:
                skipped.append(path.name)
            else:
                unfit.append((path, error))
            continue
        if pictures > 1:
            said.add("of files with several pictures the first was taken")
        take(tensor)
        kept.append(path)
        notices |= said
    if unfit:
        raise _all_unfit(unfit)
    if skipped:
        notices.add(f"{len(skipped)} unreadable images were skipped: {', '.join(skipped[:NAMED])}")
    return notices, tuple(kept)


def _all_unfit(unfit: list[tuple[Path, VduError]]) -> VduError:
    """The first error, and which other files have one too: all of them can then be mended at once."""
    (_, first), *others = unfit
    if not others:
        return first
    named = ", ".join(path.name for path, _ in others[:NAMED])
    return VduError(f"{first}; {len(others)} more cannot be used: {named}{' …' if len(others) > NAMED else ''}")


def _from_rows(rows: Sequence[Any], shape: tuple[int, int, int], called: str) -> tuple[list[Tensor], set[str]]:
    tensors: list[Tensor] = []
    notices: set[str] = set()
    for index in range(len(rows)):
        row = rows[index]
        image = next((row[k] for k in ("image", "img") if k in row), None) if isinstance(row, dict) else row
        if not isinstance(image, Image.Image):
            raise VduError(f"row {index} of the {called} set has no PIL image under 'image' or 'img': give {ACCEPTED}")
        tensor, said = image_to_tensor(_upright(image), shape, f"row {index}")
        tensors.append(tensor)
        notices |= said
    return tensors, notices


def _from_tensor(images: Tensor, shape: tuple[int, int, int], called: str) -> tuple[Tensor, set[str]]:
    if images.layout != torch.strided or not (images.is_floating_point() or images.dtype == torch.uint8):
        kind = f"{images.dtype}, {images.layout}".replace("torch.", "")
        raise VduError(f"the {called} tensor is {kind}: give floats in [-1, 1], or uint8")
    if tuple(images.shape[1:]) != shape:
        wanted = f"(N, {', '.join(map(str, shape))})"
        raise VduError(f"the {called} tensor is {tuple(images.shape)}: the model needs {wanted}")
    if not len(images):
        raise VduError(f"the {called} tensor holds no image")
    if images.dtype == torch.uint8:
        return images.cpu().float() / 127.5 - 1, set()
    if not torch.isfinite(images).all():
        raise VduError(f"the {called} tensor has values that are not finite")
    if images.abs().max() > 1:
        raise VduError(f"the {called} tensor has values outside [-1, 1]: scale it as the model's training images were")
    if images.min() < 0:
        return images.detach().cpu().float(), set()
    said = f"no value of the {called} tensor is below 0: images in [0, 1] must be scaled to [-1, 1]"
    warnings.warn(said, stacklevel=2)  # a tensor comes from Python, where nobody prints notices
    return images.detach().cpu().float(), {said}


def load_image_set(
    source: Any, shape: tuple[int, int, int], *, called: str = "forget", skip_unreadable: bool = False
) -> ImageSet:
    """Read a set for a model that makes images of ``shape`` ``(C, H, W)``; ``called`` names it in errors.

    Raises `VduError` for a missing or empty folder, an unreadable image (named), or one that does not fit the model.
    """
    notices: set[str] = set()
    tensors: list[Tensor] = []
    files: tuple[Path, ...] = ()
    if isinstance(source, Image.Image):
        source = [source]
    if isinstance(source, Tensor):
        given, notices = _from_tensor(source, shape, called)
        tensors = list(given)
    elif isinstance(source, (str, Path)):
        paths, ignored = image_paths(Path(source), called)
        notices, files = read_files(paths, shape, skip_unreadable, tensors.append)
        notices |= set(ignored)
    elif isinstance(source, dict) or not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise VduError(f"the {called} set is a {type(source).__name__}: give {ACCEPTED}")
    elif isinstance(source, (list, tuple)) and source and all(isinstance(p, (str, Path)) for p in source):
        notices, files = read_files([Path(p) for p in source], shape, skip_unreadable, tensors.append)
    else:
        tensors, notices = _from_rows(source, shape, called)
    if not tensors:
        raise VduError(f"the {called} set is empty: give at least one readable image")
    images = torch.stack(tensors)
    named = str(source) if isinstance(source, (str, Path)) else type(source).__name__
    return ImageSet(images, image_sha256(images), tuple(sorted(notices)), named, files)


def to_bytes(images: Tensor) -> Tensor:
    """Colour pictures ``(N, 3, H, W)`` uint8, as other libraries take them, of ``(N, 1 or 3, H, W)`` in [-1, 1]."""
    return ((images.expand(-1, 3, -1, -1).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
