"""The most memory that this process has had: since it began, or since `forget_peak`.

Linux: the high-water mark of what is resident (``VmHWM``), which a process has for itself alone and can set back. A
part of it may be files that are mapped, which the system can take back and read again; nobody keeps the mark of the
rest (``RssAnon``), so it is looked at a hundred times a second. Elsewhere the system's ``ru_maxrss``, which nothing
sets back, for both.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["forget_peak", "held_peak", "peak_bytes"]

PROCESS = Path("/proc/self")
LOOK_SECONDS = 0.01


def _now(figure: str) -> int:
    lines = (PROCESS / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{figure}:"))


def _held_bytes() -> int:
    return _now("RssAnon") if sys.platform == "linux" else peak_bytes()


@contextmanager
def held_peak() -> Iterator[list[int]]:
    """Fills the list, at the end of the block, with the most bytes held inside it without mapped files."""
    held, over, found = [0], threading.Event(), list[int]()

    def look() -> None:
        while not over.wait(LOOK_SECONDS):
            held.append(max(held.pop(), _held_bytes()))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()
        found.append(max(held[0], _held_bytes()))


def peak_bytes() -> int:
    """Resident bytes at the highest."""
    if sys.platform == "linux":
        return _now("VmHWM")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> bool:
    """Let the peak be what is held now; False where the system cannot."""
    try:
        (PROCESS / "clear_refs").write_text("5")
    except OSError:
        return False
    return True
