"""A settings file: TOML, shipped under a name or the user's own at a path, checked before any work."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from vdu.errors import VduError, nearest

__all__ = ["checked", "read_toml"]

M = TypeVar("M", bound=BaseModel)


def read_toml(kind: str, name: str, folder: Path, also: Iterable[str] = ()) -> dict[str, Any]:
    """What the file ``name`` of ``folder`` says, or the one at the path ``name`` where that ends in ``.toml``.

    ``kind`` is what the file is called in messages, ``also`` names that are no files. Raises `VduError`.
    """
    path = Path(name) if name.endswith(".toml") else folder / f"{name}.toml"
    if not path.is_file():
        known = [p.stem for p in folder.glob("*.toml")]
        raise VduError(f"no {kind} {name!r}: {nearest(name, [*known, *also])}; or give a .toml file")
    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise VduError(f"{kind} {path} is no TOML file ({' '.join(str(error).split())}): mend it") from error


def _fault(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "value_error":  # a check of our own, whose text says where
        return str(error["ctx"]["error"])
    if error["type"] in ("missing", "extra_forbidden"):
        return f"{where} is {'missing' if error['type'] == 'missing' else 'no setting'}"
    return f"{where} = {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def checked(kind: str, name: str, model: type[M], settings: dict[str, Any]) -> M:
    """``settings`` as a ``model``. Raises `VduError` with every fault in one line."""
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        faults = "; ".join(_fault(e) for e in error.errors())
        raise VduError(f"{kind} {name} is not valid: {faults}") from error
