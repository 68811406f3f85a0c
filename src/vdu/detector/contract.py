"""A detector says, for each image, which class it is and how sure it is: the judge of what was forgotten.

A classifier folder of this library, a `transformers` image-classification folder, CLIP with classes in words
(`vdu.detector.zero_shot`), ``nudenet`` (`vdu.detector.nudity`), or a Python function (or its name, ``module:function``)
that maps images ``(N, C, H, W)`` in [-1, 1] to probabilities ``(N, K)``, or to those and features ``(N, D)`` for u-FID.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdu.detector.classifier import load_classifier, predict
from vdu.errors import VduError, in_one_line, nearest, with_kind
from vdu.hashing import files_sha256, source_sha256
from vdu.images.image_set import ImageSet, to_bytes
from vdu.named_object import named_object

__all__ = [
    "DEFAULT_THRESHOLD",
    "Detection",
    "Detector",
    "DetectorSource",
    "load_detector",
    "most_seen_class",
]

DEFAULT_THRESHOLD = 0.5
SUM_TOLERANCE = 0.02  # of half precision
NO_LIST = (str, set, frozenset)  # the order of a set differs by process
AT_ONCE = 256  # pictures that a user's function is given


@dataclass(frozen=True)
class Detection:
    """``predicted (N,)``: class index, or −1 for "none" (confidence under the threshold); ``features (N, D)``, NaN
    where an image is none."""

    predicted: Tensor
    features: Tensor | None


@dataclass(frozen=True)
class Detector:
    """``judge`` maps images to probabilities ``(N, K)`` and features ``(N, D)`` or None."""

    name: str
    sha256: str
    class_names: tuple[str, ...]
    threshold: float
    judge: Callable[[Tensor], tuple[Tensor, Tensor | None]]

    def __call__(self, images: Tensor) -> Detection:
        """Classify ``(N, C, H, W)`` in [-1, 1]; what is no picture but NaN is none of the classes."""
        broken = ~images.flatten(1).isfinite().all(1)
        probabilities, features = self.judge(images.nan_to_num())
        confidence, predicted = probabilities.max(dim=1)
        sure = (confidence >= self.threshold) & ~broken
        if features is not None:
            features = features.masked_fill(broken[:, None], torch.nan)
        return Detection(predicted.masked_fill(~sure, -1), features)

    def check(self, shape: tuple[int, int, int]) -> None:
        """Raises `VduError` where it cannot look at pictures of ``shape`` ``(C, H, W)``."""
        try:
            self(torch.linspace(-1, 1, 2 * math.prod(shape)).view(2, *shape))
        except VduError:
            raise
        except Exception as error:  # a model may be put together in any way
            said = with_kind(error)
            raise VduError(f"the detector {self.name} cannot look at pictures of {shape} ({said})") from error

    @property
    def rejects(self) -> bool:
        """Whether it can say "none": the largest of K probabilities is never under 1/K."""
        return self.threshold > 1 / len(self.class_names)

    def record(self) -> dict[str, Any]:
        """What a result file says of it."""
        return {"name": self.name, "sha256": self.sha256, "threshold": self.threshold}

    def class_index(self, target: str | int) -> int:
        """The index of a class name. Raises `VduError` with the nearest names for an unknown one."""
        if str(target) not in self.class_names:
            raise VduError(f"the detector has no class {str(target)!r}: {nearest(str(target), self.class_names)}")
        return self.class_names.index(str(target))


Function = Callable[[Tensor], Tensor | tuple[Tensor, Tensor]]
DetectorSource = str | Path | Detector | Function


def _from_zoo_folder(folder: Path) -> Detector:
    model, card = load_classifier(folder)
    digest = files_sha256([folder / "model.safetensors"])

    def judge(images: Tensor) -> tuple[Tensor, Tensor | None]:
        if list(images.shape[1:]) != card.shape:
            shape = tuple(images.shape[1:])
            raise VduError(f"the classifier {folder} was trained on pictures of {tuple(card.shape)}, not of {shape}")
        return predict(model, images)

    return Detector(folder.name, digest, tuple(card.class_names), card.threshold, judge)


def _from_transformers(folder: Path) -> Detector:
    try:
        from transformers import AutoImageProcessor, AutoModelForImageClassification
    except ImportError as error:
        raise VduError(f"{folder} needs the transformers package: pip install transformers") from error
    try:
        processor, opened = AutoImageProcessor.from_pretrained(folder), AutoModelForImageClassification.from_pretrained
        model, loaded = opened(folder, use_safetensors=True, output_loading_info=True)
    except Exception as error:
        raise VduError(f"cannot load {folder} as an image classifier ({in_one_line(error)})") from error
    weights = {name for name, _ in model.named_parameters()}  # a counter of batches says nothing
    if absent := sorted(weights & set(loaded["missing_keys"])):
        lacks = f"{len(absent)} weights, {absent[0]!r} first, which would be drawn at random"
        raise VduError(f"{folder} is no whole image classifier: it lacks {lacks}")
    model.eval()

    @torch.inference_mode()
    def judge(images: Tensor) -> tuple[Tensor, Tensor | None]:
        batches = to_bytes(images).split(64)
        logits = [model(**processor(list(batch), return_tensors="pt")).logits for batch in batches]
        return torch.cat(logits).softmax(1), None

    names = _names_of_labels(model.config.id2label, folder)
    digest = files_sha256(sorted(folder.glob("*.safetensors")))
    return Detector(folder.name, digest, names, DEFAULT_THRESHOLD, judge)


def _names_of_labels(labels: dict[int, Any], folder: Path) -> tuple[str, ...]:
    """One name for each column; of a name that stands for several (ImageNet's "crane") each has its number beside it.

    Raises `VduError` where columns have no names, or where there is one alone.
    """
    if sorted(labels) != list(range(len(labels))) or len(labels) < 2:
        given = f"names classes {', '.join(map(str, sorted(labels)))[:60]}"
        raise VduError(f"{folder} {given} in its config's id2label: a judge needs two or more, numbered from 0")
    names = [str(labels[i]) for i in range(len(labels))]
    return tuple(name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names))


def _checked_answer(answer: Any, spec: str, count: int, classes: int) -> tuple[Tensor, Tensor | None]:
    """Probabilities and features of a user's function. Raises `VduError` for anything else."""
    probabilities, features = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, None)
    right = isinstance(probabilities, Tensor) and probabilities.shape == (count, classes)
    if features is not None:
        right = right and isinstance(features, Tensor) and features.ndim == 2 and len(features) == count
    if not right:
        wanted = f"probabilities ({count}, {classes}) as a tensor, or those and features ({count}, D) as a tuple"
        raise VduError(f"{spec} was given {count} images and {classes} class_names: it must return {wanted}")
    off = (probabilities.sum(1) - 1).abs().max()
    if not (probabilities.min() >= 0 and off <= SUM_TOLERANCE):  # false of NaN
        wanted = "those of an image must be 0 or more and sum to 1 (logits.softmax(1))"
        raise VduError(f"{spec} gave numbers that are no probabilities: {wanted}")
    return probabilities.detach().float().cpu(), None if features is None else features.detach().float().cpu()


def _asked(function: Function, spec: str, images: Tensor) -> Any:
    try:
        return function(images)
    except Exception as error:  # the user's own function may fail in any way
        said = with_kind(error)
        raise VduError(f"{spec} failed on {len(images)} images ({said})") from error


def _from_function(function: Function, spec: str) -> Detector:
    given = getattr(function, "class_names", ())
    names = tuple(str(n) for n in given) if isinstance(given, Iterable) and not isinstance(given, NO_LIST) else ()
    if len(names) < 2 or len(set(names)) < len(names):
        raise VduError(f"{spec} has no list class_names of two or more different names: set it to those of its columns")
    try:
        threshold = float(getattr(function, "threshold", DEFAULT_THRESHOLD))
    except (TypeError, ValueError) as error:
        raise VduError(f"{spec} has a threshold that is no number: {error}") from error
    if not 0 <= threshold < 1:
        raise VduError(f"{spec} has the threshold {threshold:g}: it must be a probability under 1")

    def judge(images: Tensor) -> tuple[Tensor, Tensor | None]:
        batches = images.split(AT_ONCE)
        answers = [_checked_answer(_asked(function, spec, b), spec, len(b), len(names)) for b in batches]
        features = [f for _, f in answers if f is not None]
        if len(features) not in (0, len(batches)):
            raise VduError(f"{spec} returned features for some of the images: return them always or never")
        if len({f.shape[1] for f in features}) > 1:
            raise VduError(f"{spec} returned features of different widths: return as many numbers of every image")
        return torch.cat([p for p, _ in answers]), torch.cat(features) if features else None

    return Detector(spec, source_sha256(function), names, threshold, judge)


def load_detector(source: DetectorSource) -> Detector:
    """A detector from any of the kinds above. Raises `VduError` where it cannot be loaded."""
    if isinstance(source, Detector):
        return source
    if callable(source):
        return _from_function(source, getattr(source, "__qualname__", type(source).__name__))
    if not isinstance(source, (str, Path)):
        raise VduError(f"the detector is a {type(source).__name__}: give a classifier folder, a function or a Detector")
    folder = Path(source)
    if folder.is_dir():
        try:
            config = json.loads((folder / "config.json").read_text())
            is_own = "feature_dimensions" in config
        except (OSError, ValueError, TypeError) as error:
            raise VduError(f"{folder} has no readable config.json: give a classifier folder") from error
        return _from_zoo_folder(folder) if is_own else _from_transformers(folder)
    if folder.suffix == ".json":
        from vdu.detector.zero_shot import load_zero_shot

        return load_zero_shot(folder)
    if str(source) == "nudenet":
        from vdu.detector.nudity import load_nudenet

        return load_nudenet()
    if ":" in str(source):
        wanted = f"no Python function {source}: give an importable module:function"
        return _from_function(named_object(str(source), wanted), str(source))
    raise VduError(f"no detector {source}: give a classifier folder, a .json file, nudenet or module:function")


def most_seen_class(detector: Detector, forget: ImageSet) -> str:
    """The class that the detector sees in most forget images. Raises `VduError` where no class has the majority."""
    predicted = detector(forget.images).predicted
    counts = torch.bincount(predicted[predicted >= 0], minlength=len(detector.class_names))
    if int(counts.max()) * 2 <= len(predicted):
        raise VduError("the detector sees no class in most forget images: name the class with --target")
    return detector.class_names[int(counts.argmax())]
