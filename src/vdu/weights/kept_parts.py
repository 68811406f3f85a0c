"""What a run made before its first step, kept in its state folder: a run that goes on reads it and makes it not again.

Each part follows from the run's settings, inputs and seed alone. So a part of a run with the same digest is the part,
and a run that reads it takes the same steps. Parts of one name are told by their order, which is the same each time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from vdu.errors import VduError
from vdu.weights.checkpoint import check_state, read_tensors, write_tensors

__all__ = ["PREPARATION_FOLDER", "SUFFIX", "KeptParts", "check_parts"]

PREPARATION_FOLDER, SUFFIX = "preparation", ".safetensors"


class KeptParts:
    """Parts of the run ``digest`` in ``state_folder``; without one, parts are made and nothing is kept.

    ``read``: how many were not made but read.
    """

    def __init__(self, state_folder: Path | None = None, digest: str = "") -> None:
        self.folder = state_folder / PREPARATION_FOLDER if state_folder else None
        self.digest, self.read = digest, 0
        self._asked_for: Counter[str] = Counter()

    def __call__(self, part: str, make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """The tensors of ``part``: as they were kept, on the CPU, else as ``make`` makes them, which are kept.

        Raises `VduError` where a file is not of this run, or cannot be read or written.
        """
        self._asked_for[part] += 1
        if self.folder is None:
            return make()
        path = self.folder / f"{part}-{self._asked_for[part]}{SUFFIX}"
        if path.exists():
            check_state(path, {self.digest})
            self.read += 1
            return read_tensors(path)[0]
        made = make()
        write_tensors(path, dict(made), {"settings_hash": self.digest})
        return made


def check_parts(state_folder: Path, digest: str) -> None:
    """Raise `VduError` where ``state_folder`` holds other parts than those of the run ``digest``."""
    folder = state_folder / PREPARATION_FOLDER
    if folder.exists() and not folder.is_dir():
        raise VduError(f"{folder} is a file: give --state a new or empty folder")
    found = sorted(p for p in folder.iterdir() if not p.name.startswith(".")) if folder.exists() else []
    if any(part.suffix != SUFFIX for part in found):
        raise VduError(f"{folder} holds other files than a run's state: give --state a new or empty folder")
    for part in found:
        check_state(part, {digest}, remove=state_folder)
