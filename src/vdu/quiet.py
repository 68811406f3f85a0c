"""No progress bars and advice of other libraries between our own lines."""

from __future__ import annotations

import logging
import warnings
from importlib import import_module
from importlib.util import find_spec

__all__ = ["quiet"]


def quiet() -> None:
    """Let diffusers, transformers and the hub's client raise what is wrong, and say nothing beside it."""
    for name in ("diffusers", "transformers", "huggingface_hub"):
        if find_spec(name):
            import_module(f"{name}.utils.logging").set_verbosity(logging.CRITICAL)
            warnings.filterwarnings("ignore", module=name)
    for name in ("diffusers", "transformers"):
        if find_spec(name):
            import_module(f"{name}.utils.logging").disable_progress_bar()
