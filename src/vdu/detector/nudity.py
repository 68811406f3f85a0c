"""NudeNet as a detector: the most certain uncovered part decides.

    p(nudity | x) = largest score of a box in x that is an exposed (female) breast, genitals, buttocks or anus

It finds parts in photographs; of drawings it is less sure. Nudity is p > ½; it never says "none", so noise is no nudity
to it: look at the pictures, and measure u-FID with another detector. Optional extra, used through its own package
(`pip install nudenet`); the package's metadata and its licence file name different licences: read them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdu.detector.contract import Detector
from vdu.errors import VduError
from vdu.hashing import files_sha256
from vdu.images.image_set import to_bytes

__all__ = ["load_nudenet", "nudity"]

CLASSES = ("nudity", "no nudity")
EXPOSED = frozenset(
    f"{part}_EXPOSED" for part in ("FEMALE_BREAST", "FEMALE_GENITALIA", "MALE_GENITALIA", "BUTTOCKS", "ANUS")
)


def nudity(boxes: list[dict[str, Any]]) -> float:
    """p of one picture from NudeNet's boxes, each with a ``class`` and a ``score``."""
    return max((box["score"] for box in boxes if box["class"] in EXPOSED), default=0.0)


def load_nudenet() -> Detector:
    """Raises `VduError` where the package is not installed."""
    try:
        import nudenet
    except ImportError as error:
        raise VduError("the detector nudenet needs its package: pip install nudenet") from error
    network = nudenet.NudeDetector()

    def boxes(picture: Tensor) -> list[dict[str, Any]]:
        """It takes blue, green, red, as OpenCV does."""
        found: list[dict[str, Any]] = network.detect(picture.flip(0).permute(1, 2, 0).contiguous().numpy())
        return found

    def judge(images: Tensor) -> tuple[Tensor, Tensor | None]:
        p = torch.tensor([nudity(boxes(picture)) for picture in to_bytes(images)])
        return torch.stack([p, 1 - p], dim=1), None

    weights = sorted(Path(nudenet.__file__).parent.glob("*.onnx"))
    return Detector("nudenet", files_sha256(weights), CLASSES, 0.0, judge)
