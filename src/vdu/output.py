"""An output: refused before the work where it cannot be written, written beside and renamed into place, never half.

Symbolic links are written through. A folder is replaced only where it is empty or something that vdu wrote.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from vdu.errors import VduError

__all__ = ["MOVED_FILE", "refuse_existing", "refuse_overlap", "replacing", "require_space"]

MOVED_FILE = "moved-by-delta.json"  # beside a pipeline that a delta was put on or taken off
WRITTEN_BY_VDU = ("unlearning.json", MOVED_FILE, "provenance.json", "bpe_simple_vocab_16e6.txt.gz")
OF_A_TRAINING = ("state.safetensors", "autoencoder-state.safetensors")  # hours of work, replaced by nothing
LONGEST_NAME_PART = 40


def _place(target: Path) -> Path:
    """Where ``target`` really is."""
    place = target.resolve()
    if not place.name:
        raise VduError(f"{target} cannot be written: choose another place")
    return place


def _nearest_folder(place: Path) -> Path:
    """The first folder above ``place`` that exists."""
    above = next(parent for parent in place.absolute().parents if parent.exists())
    if not above.is_dir():
        raise VduError(f"{above} is a file, so that nothing can be written below it: choose another place")
    return above


def refuse_existing(
    target: Path, overwrite: bool, *, folder: bool = False, inputs: Iterable[Any] = (), sources: Iterable[Path] = ()
) -> None:
    """Raise `VduError` for an output that exists (unless it is to be replaced) or that could not be written.

    Also for a folder with something that vdu did not write, and for one that is, holds or lies in one of ``inputs``
    (those that are paths), or is or holds one of ``sources``: replacing it would take away what is read.
    """
    place = _place(target)
    for source in sources:
        if place in (source.resolve(), *source.resolve().parents):
            refuse_overlap(target, source)
    for given in inputs:
        if isinstance(given, (str, Path)) and Path(given).exists():
            refuse_overlap(target, Path(given))
    if place.exists():
        _refuse_other_kind(target, folder)
        if not overwrite:
            raise VduError(f"{target} exists: choose another place, or pass --overwrite to replace it")
        if folder and any(place.iterdir()) and not _written_by_vdu(place):
            raise VduError(f"{target} holds a training, or what vdu did not write: choose another place, or remove it")
    parent = _nearest_folder(place)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise VduError(f"{parent} may not be written to: choose another place")


def _written_by_vdu(folder: Path) -> bool:
    """True for what has a mark of vdu's or is nothing but forget folders by class, and is no training."""
    if any((folder / mark).is_file() for mark in OF_A_TRAINING):
        return False
    return any((folder / mark).is_file() for mark in WRITTEN_BY_VDU) or all(map(_is_of_a_class, folder.iterdir()))


def _is_of_a_class(folder: Path) -> bool:
    """Whether `vdu data prepare` wrote it."""
    try:
        return "class" in json.loads((folder / "provenance.json").read_text())
    except (OSError, ValueError):
        return False


def refuse_overlap(target: Path, used: Path) -> None:
    """Raise `VduError` for an output that is, holds or lies in what is read or written beside it."""
    place, other = _place(target), used.resolve()
    if place == other or place in other.parents or other in place.parents:
        raise VduError(f"{target} is, holds or lies in {used}, which is used: choose another place")


def _refuse_other_kind(target: Path, folder: bool) -> None:
    if target.is_dir() != folder:
        kind, wanted = ("file", "folder") if folder else ("folder", "file")
        raise VduError(f"{target} is a {kind} and a {wanted} is to be written: choose another place")


def require_space(target: Path, needed_bytes: int) -> None:
    """Raise `VduError` when the disk of ``target`` has less than ``needed_bytes`` free."""
    free_bytes = shutil.disk_usage(_nearest_folder(_place(target))).free
    if free_bytes < needed_bytes:
        sizes = f"{needed_bytes / 1e6:,.0f} MB are needed, {free_bytes / 1e6:,.0f} MB free"
        raise VduError(f"no space left on the disk for {target} ({sizes}): free some space and run again")


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a temporary path beside ``target``; rename it over ``target`` only when the block succeeds.

    Works for files and folders. Raises `VduError` when the disk is full, or where a folder would give way to a file or
    a file to a folder; ``target`` is then as it was.
    """
    place = _place(target)
    place.parent.mkdir(parents=True, exist_ok=True)
    own = f"{os.getpid()}-{secrets.token_hex(4)}"  # in containers every process may have the same number
    beside, retired = (
        place.with_name(f".{place.name[:LONGEST_NAME_PART]}.{kind}-{own}") for kind in ("partial", "old")
    )
    try:
        yield beside
        if place.exists():
            _refuse_other_kind(target, folder=beside.is_dir())
        if place.is_dir():
            place.rename(retired)
        beside.replace(place)
    except Exception as error:
        if _is_disk_full(error):
            raise VduError(f"no space left on the disk for {target}: free some space and run again") from error
        raise
    finally:
        if retired.exists() and not place.exists():
            retired.rename(place)
        for leftover in (beside, retired):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def _is_disk_full(error: BaseException) -> bool:
    """True for a full disk, quota or file size limit, also where safetensors has wrapped it in a text."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    said = str(error) if isinstance(error, (SafetensorError, OSError)) else ""
    return "No space left" in said or "File too large" in said
