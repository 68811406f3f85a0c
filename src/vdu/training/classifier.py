"""How the shipped classifiers are trained, and their reject calibrated.

The reject's threshold is the 5 % quantile of the confidence on real held-out images.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from vdu.bounds import Count, NotNegative, Positive
from vdu.corpora import Corpus
from vdu.detector.classifier import ARCHITECTURES, ClassifierCard, load_classifier, predict
from vdu.errors import VduError
from vdu.precision import autocast, resolve_precision
from vdu.seeding import generator
from vdu.training.augmentation import mirrored, moved_each, moved_together

__all__ = ["ClassifierSettings", "refuse_other_judge", "train_classifier"]

REJECTED_SHARE_OF_REAL = 0.05
FEATURE_DIMENSIONS = 64
BATCH_SIZE = 128
SEED = 0


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


def refuse_other_judge(folder: Path, settings: ClassifierSettings, data_sha256: str) -> None:
    """Raise `VduError` for a classifier folder of another network or of other pictures than those."""
    _, card = load_classifier(folder)
    if (card.architecture, card.width, card.data_sha256) != (settings.architecture, settings.width, data_sha256):
        raise VduError(f"{folder} is of another recipe or of other pictures: remove it or choose another --out")


def _augmented(x: Tensor, g: torch.Generator, mirror_keeps_class: bool) -> Tensor:
    return moved_each(mirrored(x, g), g) if mirror_keeps_class else moved_together(x, g)


def _fit(model: nn.Module, train: Corpus, settings: ClassifierSettings, batch_size: int) -> None:
    steps = settings.epochs * (len(train.images) // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=settings.learning_rate, total_steps=steps)
    # A CPU's bfloat16 convolutions are twice as fast channels last; in single precision the order is left as it is.
    precision = resolve_precision(settings.precision)
    layout = torch.channels_last if precision == "bf16" else torch.contiguous_format
    model.to(memory_format=layout)  # type: ignore[call-overload]  # torch's own stubs leave it out
    for step in range(steps):
        g = generator(SEED, "classifier", step)
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
    train: Corpus, test: Corpus, settings: ClassifierSettings, *, batch_size: int = BATCH_SIZE
) -> tuple[nn.Module, ClassifierCard]:
    """Fit on ``train``, calibrate the reject and measure accuracy on ``test``. AdamW with one-cycle learning rate.

    Images are moved a little, and mirrored where that keeps their class. The network's weights are of the type in which
    they are to be stored (`save_classifier`); the card's figures are those of the stored ones.
    """
    torch.manual_seed(SEED)
    batch_size = min(batch_size, len(train.images))
    channels, height, width = train.images.shape[1:]
    model = ARCHITECTURES[settings.architecture](channels, len(train.class_names), settings.width, FEATURE_DIMENSIONS)
    _fit(model, train, settings, batch_size)
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
        seed=SEED,
        data_sha256=train.sha256,
        architecture=settings.architecture,
    )
    return model, card
