"""A record: one JSON file, written whole or not at all, and refused in one line where it cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vdu.errors import VduError, in_one_line
from vdu.output import replacing

__all__ = ["read_record", "write_record"]


def read_record(path: Path, instead: str = "remove it and make it again") -> dict[str, Any]:
    """What a JSON file holds; NaN, which earlier versions wrote, is None. ``instead``: what the user can do.

    Raises `VduError` where it cannot be read or is no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (OSError, ValueError) as error:
        raise VduError(f"{path} cannot be read as JSON ({in_one_line(error)}): {instead}") from error
    if not isinstance(found, dict):
        raise VduError(f"{path} holds no record but a {type(found).__name__}: {instead}")
    return found


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write one JSON file atomically. What could not be measured is None: NaN is no JSON, and a `ValueError` here."""
    with replacing(path) as beside:
        beside.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
