"""vdu: make a diffusion model forget a folder of images, with evidence.

Variational Diffusion Unlearning: Panda et al., arXiv 2510.04058. Everything heavy is imported on first use.

The way that data takes; nothing imports from further down:

    images, backbone      pictures as tensors; diffusers' pipelines behind one contract
    diffusion, weights    times, noise, losses, samples; parameters and the forms in which they are stored
    detector, posterior   what judges a picture; p(θ|D)
    text, preparation     what is found out about original and forget images before training
    objective, methods    plasticity and stability; one short file a method
    loop, guard           training, checks, rollback
    unlearning, result    `vdu.unlearn` and what it hands back
    evaluation, report    figures and what people read of them
    corpora, training, text_to_image, zoo    the shipped models, and how they were made
    bench, cli            suites and tables; the command line
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vdu.errors import VduError
    from vdu.evaluation.comparison import Sampler, evaluate
    from vdu.evaluation.relearning import relearn
    from vdu.result import Result
    from vdu.unlearning import unlearn

__version__ = "0.1.0"
__all__ = ["Result", "Sampler", "VduError", "evaluate", "relearn", "unlearn"]

_HOME = {
    "VduError": "errors",
    "unlearn": "unlearning",
    "Result": "result",
    "evaluate": "evaluation.comparison",
    "Sampler": "evaluation.comparison",
    "relearn": "evaluation.relearning",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vdu' has no attribute {name!r}")
    return getattr(import_module(f"vdu.{_HOME[name]}"), name)
