"""No progress bars and advice of other libraries between our own lines."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

__all__ = ["quiet"]


def quiet() -> None:
    """Let diffusers and transformers speak of errors only."""
    for name in ("diffusers", "transformers"):
        if find_spec(name):
            logging = import_module(f"{name}.utils.logging")
            logging.disable_progress_bar()
            logging.set_verbosity_error()
