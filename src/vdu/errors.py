"""The one error that a user is meant to read: what is wrong and what to do, in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["VduError", "in_one_line", "nearest", "out_of_memory", "with_kind"]

MOST_CHARACTERS = 200
REFUSED = ("out of memory", "alloc", "memory object")  # what torch says of an allocation that it was not given
REFUSED_ON_CPU = "[enforce fail at alloc_cpu.cpp"  # and where there is no memory left to say it in, the start of it


class VduError(Exception):
    """Bad input. The message is one line; the command line prints it and exits with 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint such as ``did you mean 'ga'? Known: ga, vdu`` for an unknown ``name``."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=2, cutoff=0.4)
    meant = f"did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
    return f"{meant}Known: {', '.join(names)}"


def in_one_line(error: Exception) -> str:
    """The start of what another library's error says, for the end of one of ours."""
    return " ".join(str(error).split())[:MOST_CHARACTERS]


def with_kind(error: Exception) -> str:
    """As `in_one_line`, after the error's class: of code that may fail in any way."""
    return f"{type(error).__name__}: {in_one_line(error)}"


def out_of_memory(error: Exception) -> bool:
    """Whether ``error`` is of memory that was not there, on whatever device."""
    said = str(error)
    refused = any(words in said for words in REFUSED) or (said != "" and REFUSED_ON_CPU.startswith(said))
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and refused)
