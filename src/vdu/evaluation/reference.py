"""Features of real images, the yardstick of u-FID, KID, precision and recall.

A safetensors file (``features (N, D)``, ``labels (N,)``, metadata ``extractor_sha256``), or a folder of images, with
one sub-folder a class where the detector's class names are sub-folder names, else labelled by the detector.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vdu.detector.contract import Detection, Detector
from vdu.errors import VduError, nearest
from vdu.images.image_set import image_paths, read_files
from vdu.weights.checkpoint import read_tensors, write_tensors

__all__ = ["Reference", "load_reference"]

READ_AT_ONCE = 500


@dataclass(frozen=True)
class Reference:
    """``features (N, D)`` and ``labels (N,)`` of real images; what had to be converted or left out of these."""

    features: Tensor
    labels: Tensor
    notices: tuple[str, ...] = ()

    def retained(self, target: int) -> Tensor:
        """Features of all images that are not of ``target``."""
        return self.features[self.labels != target].float()

    def save(self, path: Path, detector: Detector) -> None:
        """Write as float16 with the extractor's hash."""
        tensors = {"features": self.features.half(), "labels": self.labels.to(torch.int16)}
        write_tensors(path, tensors, {"extractor_sha256": detector.sha256})


def _class_folders(path: Path, detector: Detector) -> list[str]:
    """The classes that ``path`` has a sub-folder of. Raises `VduError` where other sub-folders stand beside these."""
    inside = (
        sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")) if path.is_dir() else []
    )
    named = [name for name in detector.class_names if name in inside]
    for name in inside if named else ():
        if name not in named:
            known = nearest(name, detector.class_names)
            raise VduError(f"the reference {path} has a folder {name}, which is no class of the detector: {known}")
    return named


def load_reference(
    path: Path, detector: Detector, shape: tuple[int, int, int], *, skip_unreadable: bool = False
) -> Reference:
    """Read or compute a reference. Raises `VduError` where it was made with another extractor or has no features."""
    if path.is_file():
        tensors, metadata = read_tensors(path)
        if metadata.get("extractor_sha256") != detector.sha256:
            raise VduError(f"reference {path} was made with another detector: give the folder of real images instead")
        return _finite(Reference(tensors["features"].float(), tensors["labels"].long()), path)
    named = _class_folders(path, detector)
    folders = [path / name for name in named] if named else [path]
    detections, notices = [], []
    for folder in folders:
        seen, said = _seen_in(folder, detector, shape, skip_unreadable)
        detections.append(seen)
        notices += [f"{folder.name}: {notice}" for notice in said]
    if any(d.features is None for d in detections):
        needed = "a vdu classifier folder, or a function that returns (probabilities, features)"
        raise VduError(f"detector {detector.name} gives no features: u-FID needs {needed}")
    features = torch.cat([d.features for d in detections if d.features is not None])
    if named:
        labels = torch.cat(
            [torch.full((len(d.predicted),), detector.class_index(n)) for d, n in zip(detections, named, strict=True)]
        )
    else:
        labels = torch.cat([d.predicted for d in detections])
    return _finite(Reference(features, labels, tuple(notices)), path)


def _seen_in(
    folder: Path, detector: Detector, shape: tuple[int, int, int], skip_unreadable: bool
) -> tuple[Detection, list[str]]:
    """What the detector says of a folder's images, of which no more than `READ_AT_ONCE` are held, and the notices."""
    paths, ignored = image_paths(folder, "reference")
    held: list[Tensor] = []
    detections: list[Detection] = []

    def judge() -> None:
        detections.append(detector(torch.stack(held)))
        held.clear()

    def take(image: Tensor) -> None:
        held.append(image)
        if len(held) == READ_AT_ONCE:
            judge()

    notices, kept = read_files(paths, shape, skip_unreadable, take)
    if not kept:
        raise VduError("the reference set is empty: give at least one readable image")
    if held:
        judge()
    features = [d.features for d in detections if d.features is not None]
    whole = torch.cat(features) if len(features) == len(detections) else None
    return Detection(torch.cat([d.predicted for d in detections]), whole), sorted(notices | set(ignored))


def _finite(reference: Reference, path: Path) -> Reference:
    """``reference``; raises `VduError` where its features cannot be compared with any."""
    broken = ~reference.features.isfinite().all(1)
    if broken.any():
        said = f"the features of {int(broken.sum())} of its {len(broken)} images are not finite"
        raise VduError(f"reference {path}: {said}: leave those images out, or mend the detector")
    return reference
