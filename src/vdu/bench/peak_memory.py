"""The most memory that this process has held: since it began, or since `forget_peak`.

Linux: the high-water mark of what is resident (``VmHWM``), which a process has for itself alone and can set back.
Elsewhere the system's ``ru_maxrss``, which nothing sets back.
"""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["forget_peak", "peak_bytes"]

PROCESS = Path("/proc/self")


def peak_bytes() -> int:
    """Resident bytes at the highest."""
    if sys.platform == "linux":
        lines = (PROCESS / "status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> bool:
    """Let the peak be what is held now; False where the system cannot."""
    try:
        (PROCESS / "clear_refs").write_text("5")
    except OSError:
        return False
    return True
