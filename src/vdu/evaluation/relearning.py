"""How soon a forgotten class comes back when a model is trained on forget images again.

    θ_{k+1} = θ_k − Adam(∇_θ E_{x ~ D_f, t, ε} ‖y − f_θ(x_t, t)‖²),   s_k = share of the class in samples of θ_k
    steps to return = the first k looked at with s_k ≥ ½ s_original

    ratio to the oracle = steps of the unlearned model / steps of one that never saw the class

1 means forgotten, far under 1 hidden. Without an oracle, models compare with each other only: every model learns the
class in the end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vdu.backbone import Backbone, load_backbone, placed, weights_sha256
from vdu.detector.contract import Detector, DetectorSource, load_detector
from vdu.diffusion.denoising import Denoising
from vdu.diffusion.noising import Clean
from vdu.errors import VduError
from vdu.evaluation.comparison import Sampler, load_alike
from vdu.evaluation.metrics import Interval, share_interval
from vdu.images.image_set import load_image_set
from vdu.precision import autocast
from vdu.provenance import made_by
from vdu.seeding import generator
from vdu.weights.gradients import descend

__all__ = ["Relearning", "looks", "ratio_to_oracle", "relearn", "steps_to_return", "trained_further"]


@dataclass(frozen=True)
class Relearning:
    """How a model is trained on forget images: at a constant rate, every weight."""

    steps: int = 80
    learning_rate: float = 1e-4
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", int(self.seed))  # a numpy number would name other draws


def looks(steps: int) -> list[int]:
    """0, 5, 10, 20, 40 … and ``steps``: when the model is sampled."""
    doubling = [0, *(5 * 2**i for i in range(steps.bit_length()))]
    return [*(step for step in doubling if step < steps), steps]


def trained_further(
    backbone: Backbone, images: Tensor, settings: Relearning, precision: str
) -> Iterator[tuple[int, nn.Module]]:
    """The network at each look, trained further between them."""
    network, loss = backbone.trainable_copy(), Denoising(backbone, Clean(images))
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    done = 0
    for look in looks(settings.steps):
        network.train()
        for step in range(done, look):
            with autocast(network, precision):
                error = loss(network, settings.batch_size, generator(settings.seed, "relearning", step))
            descend(optimizer, error)
        done = look
        yield look, network.eval()


def _shares(seen: Tensor, detector: Detector, target: int) -> dict[str, Any]:
    none = share_interval(seen < 0) if detector.rejects else Interval(None, None, None)
    return {"share": asdict(share_interval(seen == target)), "share_none": asdict(none)}


def steps_to_return(curve: list[dict[str, Any]], share_original: float) -> int | None:
    """The first look at which half of the original's share (percent) is back; None for no look."""
    back = (look["step"] for look in curve if look["share"]["value"] >= share_original / 2)
    return next(back, None)


def ratio_to_oracle(returned: dict[str, int | None]) -> float | None:
    """Steps to return, the unlearned model's over the oracle's.

    None without an oracle, where either never returned, and where the oracle makes the class untrained.
    """
    unlearned, oracle = returned["unlearned"], returned.get("oracle")
    return None if unlearned is None or not oracle else unlearned / oracle


def _opened(original: Any, unlearned: Any, oracle: Any) -> tuple[Backbone, dict[str, Backbone]]:
    first = original if isinstance(original, Backbone) else load_backbone(original)
    if first.prompts is not None:
        raise VduError("relearning is measured on models without text: this one takes prompts")
    given = {"unlearned": unlearned} | ({} if oracle is None else {"oracle": oracle})
    return first, {name: load_alike(first, model) for name, model in given.items()}


def relearn(
    original: Any,
    unlearned: Any,
    forget: Any,
    detector: DetectorSource,
    target: str | int,
    *,
    oracle: Any = None,
    settings: Relearning | None = None,
    sampler: Sampler | None = None,
    on_look: Callable[[str, dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """The curve of ``unlearned``, of ``oracle`` where there is one, and the original's share beside them, as a record.

    Models are pipelines, folders or `Backbone`s; ``forget`` as of `vdu.unlearn`. Shares are percent. ``on_look``
    is told each as it comes, with the model's name. Raises `VduError` for a model with text, models of different shape,
    an unknown class, a learning rate that is not positive, or a class that the original never makes.
    """
    started, settings, sampler = time.monotonic(), settings or Relearning(), sampler or Sampler(count=500)
    if not 0 < settings.learning_rate < math.inf:
        raise VduError(f"the learning rate must be positive, not {settings.learning_rate}")
    judge = load_detector(detector)
    index = judge.class_index(target)
    first, models = _opened(original, unlearned, oracle)
    judge.check(first.shape)
    images = load_image_set(forget, first.shape)
    told = on_look or (lambda name, look: None)
    before = {"step": 0} | _shares(sampler.judged(first, judge).detection.predicted, judge, index)
    told("original", before)
    if not before["share"]["value"]:
        raise VduError(f"the original makes no {target!r} in {sampler.count} samples: there is nothing to come back")
    curves: dict[str, list[dict[str, Any]]] = {name: [] for name in models}
    for name, backbone in models.items():
        for look in _looked_at(backbone, images.images, settings, sampler, judge, index):
            told(name, look)
            curves[name].append(look)
    record = _heading(first, models, judge, sampler) | {"target": judge.class_names[index], "forget": images.record()}
    record |= {"settings": asdict(settings)} | _outcome(before, curves)
    return record | {"seconds": round(time.monotonic() - started, 2)}


def _looked_at(
    backbone: Backbone, images: Tensor, settings: Relearning, sampler: Sampler, judge: Detector, target: int
) -> Iterator[dict[str, Any]]:
    """Step and shares at each look."""
    with placed(backbone.network, sampler.device):
        for step, network in trained_further(backbone, images, settings, sampler.precision):
            seen = sampler.judged(backbone, judge, network).detection
            yield {"step": step} | _shares(seen.predicted, judge, target)


def _outcome(before: dict[str, Any], curves: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    returned = {name: steps_to_return(curve, before["share"]["value"]) for name, curve in curves.items()}
    figures = {"steps_to_return": returned, "ratio_to_oracle": ratio_to_oracle(returned)}
    return {"original": before, "curves": curves} | figures


def _heading(first: Backbone, models: dict[str, Backbone], judge: Detector, sampler: Sampler) -> dict[str, Any]:
    return {
        "schema": 1,
        "original_sha256": weights_sha256(first.network),
        "sha256": {name: weights_sha256(backbone.network) for name, backbone in models.items()},
        "samples": sampler.count,
        "seed": sampler.seed,
        "sampler": sampler.record(),
        "detector": judge.record(),
        **made_by(),
    }
