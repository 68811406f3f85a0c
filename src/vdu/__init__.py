"""vdu: make a diffusion model forget a folder of images, with evidence.

Variational Diffusion Unlearning: Panda et al., arXiv 2510.04058. Everything heavy is imported on first use.

The way that data takes; nothing imports from further down (`tests/test_layers.py`):

    errors … output       what everything leans on: one-line errors, seeds, precision, files that are never half
    prompts, images       texts that a model is asked with; pictures as tensors
    model_zoo, backbone   the shipped models (in zoo/); diffusers' pipelines behind one contract
    diffusion, weights    times, noise, losses, samples; parameters and the forms in which they are stored
    corpora, detector     labelled images; what judges a picture
    posterior             p(θ|D)
    text, preparation     what is found out about original and forget images before training
    objective, methods    plasticity and stability; one short file a method
    guard, loop           checks and rollback; the loop of steps
    inputs                what one run is given, read and checked
    evaluation, report    figures and what people read of them
    result, unlearning    what `vdu.unlearn` hands back, and `vdu.unlearn`
    training              how the shipped models are made
    bench, cli            suites and tables; the command line
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vdu.errors import VduError
    from vdu.evaluation.comparison import Sampler, evaluate
    from vdu.evaluation.relearning import relearn
    from vdu.prompts import Prompts
    from vdu.result import Result
    from vdu.unlearning import unlearn

__version__ = "0.1.0"
__all__ = ["Prompts", "Result", "Sampler", "VduError", "evaluate", "relearn", "unlearn"]

_HOME = {
    "VduError": "errors",
    "Prompts": "prompts",
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
