"""vdu: make a diffusion model forget a folder of images, with evidence.

Variational Diffusion Unlearning: Panda et al., arXiv 2510.04058. Everything heavy is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vdu.errors import VduError
    from vdu.evaluation import Sampler, evaluate
    from vdu.relearning import relearn
    from vdu.result import Result
    from vdu.unlearning import unlearn

__version__ = "0.1.0"
__all__ = ["Result", "Sampler", "VduError", "evaluate", "relearn", "unlearn"]

_HOME = {
    "VduError": "errors",
    "unlearn": "unlearning",
    "Result": "result",
    "evaluate": "evaluation",
    "Sampler": "evaluation",
    "relearn": "relearning",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vdu' has no attribute {name!r}")
    return getattr(import_module(f"vdu.{_HOME[name]}"), name)
