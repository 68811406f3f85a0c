"""What a method must be given and what it may be given, and the one line for what is missing or of no use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vdu.errors import VduError, nearest
from vdu.objective.contract import Method

__all__ = ["check_needs"]

HOW = {
    "forget": "images to forget: give --forget FOLDER",
    "retain": "images to keep: give --retain FOLDER",
    "posterior": "a posterior: give --posterior FILE (`vdu posterior` makes one)",
    "prompt": "the concept in words: give --prompt TEXT (and a model that takes text)",
    "teacher": "a teacher: give --teacher MODEL",
}
DEMANDED = ("retain", "teacher")  # a shipped model brings its posterior along, so that one may lie unused


def check_needs(method: Method, given: Mapping[str, Any]) -> None:
    """Raise `VduError` for the first need that is None in ``given``, or for what was given and would not be used."""
    needs, takes = method.settings.needs, method.settings.takes
    for need in needs:
        if need not in HOW:
            raise VduError(f"method {method.name} needs {need!r}, which nothing gives: {nearest(need, HOW)}")
        if given.get(need) is None:
            raise VduError(f"method {method.name} needs {HOW[need]}")
    for name in DEMANDED:
        if given.get(name) is not None and name not in (*needs, *takes):
            raise VduError(f"method {method.name} makes no use of --{name}: leave it out, or choose another --method")
