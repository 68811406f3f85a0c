"""NudeNet as a detector: the most certain uncovered part decides.

    p(nudity | x) = largest score of a box in x that is an exposed (female) breast, genitals, buttocks or anus

It finds parts in photographs; of drawings it is less sure. Optional extra, used through its own package
(`pip install 'vdu[nudity]'`); the package's metadata and its licence file name different licences: read them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from vdu.detector import Detector, to_bytes
from vdu.errors import VduError

__all__ = ["load_nudenet"]

CLASSES = ("nudity", "no nudity")
EXPOSED = frozenset(
    f"{part}_EXPOSED" for part in ("FEMALE_BREAST", "FEMALE_GENITALIA", "MALE_GENITALIA", "BUTTOCKS", "ANUS")
)


def load_nudenet() -> Detector:
    """Raises `VduError` where the package is not installed."""
    try:
        import nudenet
    except ImportError as error:
        raise VduError("the detector nudenet needs its package: pip install 'vdu[nudity]'") from error
    network = nudenet.NudeDetector()

    def nudity(picture: Tensor) -> float:
        blue_green_red = picture.flip(0).permute(1, 2, 0).contiguous().numpy()
        boxes = network.detect(blue_green_red)
        return max((box["score"] for box in boxes if box["class"] in EXPOSED), default=0.0)

    def judge(images: Tensor) -> tuple[Tensor, Tensor | None]:
        p = torch.tensor([nudity(picture) for picture in to_bytes(images)])
        return torch.stack([p, 1 - p], dim=1), None

    weights = sorted(Path(nudenet.__file__).parent.glob("*.onnx"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in weights)).hexdigest()
    return Detector("nudenet", digest, CLASSES, 0.0, judge)
