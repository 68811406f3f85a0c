"""A small convolutional or residual classifier and its calibrated reject: the zoo's detector.

The reject's threshold is the 5 % quantile of the confidence on real held-out images: 95 % of real images pass, what
lies under it is "none of the classes" (noise, broken shapes). The penultimate layer gives the features of u-FID.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vdu.detector.feature_classifier import FeatureClassifier
from vdu.detector.residual_classifier import ResidualClassifier
from vdu.errors import VduError
from vdu.output import replacing

__all__ = [
    "ARCHITECTURES",
    "Classifier",
    "ClassifierCard",
    "load_classifier",
    "predict",
    "save_classifier",
]
BATCH_SIZE = 500


@dataclass(frozen=True)
class ClassifierCard:
    """What a classifier folder's ``config.json`` holds."""

    class_names: list[str]
    shape: list[int]
    width: int
    feature_dimensions: int
    threshold: float
    test_accuracy: float
    test_images: int
    seed: int
    data_sha256: str
    architecture: str = "plain"  # folders that were written before there was another lack it


class Classifier(FeatureClassifier):
    """Three stride-2 stages of two 3×3 convolutions, global pooling, ``feature_dimensions`` features, a linear head."""

    def __init__(self, channels: int, classes: int, width: int, feature_dimensions: int) -> None:
        layers: list[nn.Module] = []
        for index, out in enumerate((width, 2 * width, 2 * width)):
            into = channels if index == 0 else width * min(2, 2 ** (index - 1))
            layers += [nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
            layers += [nn.Conv2d(out, out, 3, stride=2, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
        body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        super().__init__(body, 8 * width, feature_dimensions, classes)


ARCHITECTURES: dict[str, type[Classifier] | type[ResidualClassifier]] = {
    "plain": Classifier,
    "residual": ResidualClassifier,
}


@torch.inference_mode()
def predict(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities ``(N, K)`` and features ``(N, D)`` on the CPU."""
    model.eval()
    parts = [model(batch) for batch in images.split(BATCH_SIZE)]
    return torch.cat([p[0].softmax(1) for p in parts]), torch.cat([p[1] for p in parts])


def save_classifier(model: nn.Module, card: ClassifierCard, folder: Path) -> None:
    """``config.json`` and ``model.safetensors``, renamed into place together."""
    with replacing(folder) as beside:
        beside.mkdir()
        (beside / "config.json").write_text(json.dumps(asdict(card), indent=2) + "\n")
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, str(beside / "model.safetensors"))


def load_classifier(folder: Path) -> tuple[nn.Module, ClassifierCard]:
    """Read a classifier folder. Raises `VduError` where it is not one."""
    try:
        card = ClassifierCard(**json.loads((folder / "config.json").read_text()))
        model = ARCHITECTURES[card.architecture](
            card.shape[0], len(card.class_names), card.width, card.feature_dimensions
        )
        model.load_state_dict(load_file(str(folder / "model.safetensors")))
    except Exception as error:
        raise VduError(
            f"{folder} is not a vdu classifier folder: it needs config.json and model.safetensors"
        ) from error
    return model.eval().requires_grad_(False), card
