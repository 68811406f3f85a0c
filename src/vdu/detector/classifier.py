"""A small convolutional or residual classifier and its calibrated reject: the zoo's detector.

The reject's threshold is the 5 % quantile of the confidence on real held-out images: 95 % of real images pass, what
lies under it is "none of the classes" (noise, broken shapes). The penultimate layer gives the features of u-FID.
"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vdu.bounds import Count, NotNegative, Positive
from vdu.corpora import Corpus
from vdu.detector.feature_classifier import FeatureClassifier
from vdu.detector.residual_classifier import ResidualClassifier
from vdu.errors import VduError
from vdu.images.augmentation import mirrored, moved_each, moved_together
from vdu.output import replacing
from vdu.precision import autocast, resolve_precision
from vdu.seeding import generator

__all__ = [
    "Classifier",
    "ClassifierCard",
    "ClassifierSettings",
    "load_classifier",
    "predict",
    "save_classifier",
    "train_classifier",
]

REJECTED_SHARE_OF_REAL = 0.05
FEATURE_DIMENSIONS = 64


class ClassifierSettings(BaseModel):
    """Which network and how it is trained; the defaults are those of MNIST."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    architecture: Literal["plain", "residual"] = "plain"
    width: Count = 32
    epochs: Count = 6
    learning_rate: Positive = 2e-3
    weight_decay: NotNegative = 1e-2
    precision: Literal["auto", "bf16", "fp32"] = "fp32"  # of the forward passes of training
    weights: Literal["fp32", "fp16"] = "fp32"  # in which it is stored; what is measured is what is stored


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


_ARCHITECTURES: dict[str, type[Classifier] | type[ResidualClassifier]] = {
    "plain": Classifier,
    "residual": ResidualClassifier,
}


@torch.inference_mode()
def predict(model: nn.Module, images: Tensor, batch_size: int = 500) -> tuple[Tensor, Tensor]:
    """Probabilities ``(N, K)`` and features ``(N, D)`` on the CPU."""
    model.eval()
    parts = [model(batch) for batch in images.split(batch_size)]
    return torch.cat([p[0].softmax(1) for p in parts]), torch.cat([p[1] for p in parts])


def _augmented(x: Tensor, g: torch.Generator, mirror_keeps_class: bool) -> Tensor:
    return moved_each(mirrored(x, g), g) if mirror_keeps_class else moved_together(x, g)


def _fit(model: nn.Module, train: Corpus, settings: ClassifierSettings, batch_size: int, seed: int) -> None:
    steps = settings.epochs * (len(train.images) // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=settings.learning_rate, total_steps=steps)
    # A CPU's bfloat16 convolutions are twice as fast channels last; in single precision the order is left as it is.
    precision = resolve_precision(settings.precision)
    layout = torch.channels_last if precision == "bf16" else torch.contiguous_format
    model.to(memory_format=layout)  # type: ignore[call-overload]  # torch's own stubs leave it out
    for step in range(steps):
        g = generator(seed, "classifier", step)
        index = torch.randint(len(train.images), (batch_size,), generator=g)
        x = _augmented(train.images[index].float() / 127.5 - 1, g, train.mirror_keeps_class)
        with autocast(model, precision):
            logits = model(x.contiguous(memory_format=layout))[0]
        loss = nn.functional.cross_entropy(logits.float(), train.labels[index], label_smoothing=0.02)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()


def train_classifier(
    train: Corpus, test: Corpus, settings: ClassifierSettings, *, batch_size: int = 128, seed: int = 0
) -> tuple[nn.Module, ClassifierCard]:
    """Fit on ``train``, calibrate the reject and measure accuracy on ``test``. AdamW with one-cycle learning rate.

    Images are moved a little, and mirrored where that keeps their class. The network's weights are of the type in which
    they are to be stored (`save_classifier`); the card's figures are those of the stored ones.
    """
    torch.manual_seed(seed)
    channels, height, width = train.images.shape[1:]
    model = _ARCHITECTURES[settings.architecture](channels, len(train.class_names), settings.width, FEATURE_DIMENSIONS)
    _fit(model, train, settings, batch_size, seed)
    measured = copy.deepcopy(model.half()).float() if settings.weights == "fp16" else model
    probabilities, _ = predict(measured, test.images.float() / 127.5 - 1)
    confidence, predicted = probabilities.max(1)
    card = ClassifierCard(
        class_names=list(train.class_names),
        shape=[channels, height, width],
        width=settings.width,
        feature_dimensions=FEATURE_DIMENSIONS,
        threshold=float(confidence.quantile(REJECTED_SHARE_OF_REAL)),
        test_accuracy=float((predicted == test.labels).double().mean()),
        test_images=len(test.images),
        seed=seed,
        data_sha256=train.sha256,
        architecture=settings.architecture,
    )
    return model, card


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
        model = _ARCHITECTURES[card.architecture](
            card.shape[0], len(card.class_names), card.width, card.feature_dimensions
        )
        model.load_state_dict(load_file(str(folder / "model.safetensors")))
    except Exception as error:
        raise VduError(
            f"{folder} is not a vdu classifier folder: it needs config.json and model.safetensors"
        ) from error
    return model.eval().requires_grad_(False), card
