"""What is named ``module:name``: importable, or of a file in the working folder, where console scripts do not look."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from vdu.errors import VduError, with_kind

__all__ = ["named_object"]


def named_object(spec: str, wanted: str) -> Any:
    """The object. Raises `VduError`, which says what is ``wanted``, where there is none."""
    module_name, _, name = spec.partition(":")
    if not module_name or module_name.startswith("."):
        raise VduError(wanted)
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        return getattr(importlib.import_module(module_name), name)
    except Exception as error:  # the user's own file may fail in any way while it is imported
        raise VduError(f"{wanted} ({with_kind(error)})") from error
