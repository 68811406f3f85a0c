"""What a sample shows, as a judge says: the forget set's content, or nothing that the model made before.

detector      the forgotten class; "none" where it is not sure of any
label-free    undesired where ρ > ½ at low noise by the discriminator; "none" where the nearest own sample, in the
              frozen network's features, is farther than the 95 % quantile of what own samples have among themselves
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from vdu.detector.contract import Detector
from vdu.preparation.banks import Banks
from vdu.preparation.preparation import Preparation
from vdu.weights.kept_parts import KeptParts

__all__ = ["Judge", "detector_judge", "label_free_judge"]

Judge = Callable[[Tensor], tuple[Tensor, Tensor]]

LOOK_DRAWS = 2
LOOK_RANGE = (0.05, 0.3)


def detector_judge(detector: Detector, target: int, decode: Callable[[Tensor], Tensor]) -> Judge:
    """Forgotten class and "none" as the detector says of the decoded samples."""

    def judge(images: Tensor) -> tuple[Tensor, Tensor]:
        predicted = detector(decode(images)).predicted
        return predicted == target, predicted < 0

    return judge


def label_free_judge(preparation: Preparation) -> Judge:
    """Forget images and own samples are all it knows."""

    def look(images: Tensor, banks: Banks) -> tuple[Tensor, Tensor]:
        bank = banks.fill(images, "look", draws=LOOK_DRAWS, t_range=LOOK_RANGE, features_only=True)
        features = (bank.features - head.centre) / head.spread
        return bank.by_image(head(bank.features, bank.t_share)), features.view(LOOK_DRAWS, len(images), -1).mean(0)

    head = preparation.discriminator
    own = look(preparation.own_samples.x_0, preparation.banks)[1]
    anew = replace(preparation.banks, parts=KeptParts())
    among = torch.cdist(own, own).fill_diagonal_(float("inf")).min(dim=1).values
    far = among.quantile(0.95)

    def judge(images: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = look(images, anew)
        return logits > 0, torch.cdist(features, own).min(dim=1).values > far

    return judge
