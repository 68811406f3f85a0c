"""Makes noised banks for one original, seed and precision; what was made before is read (`vdu.weights.kept_parts`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vdu.backbone import Backbone
from vdu.diffusion.noised_bank import NoisedBank, fill_bank
from vdu.diffusion.noising import Clean
from vdu.weights.kept_parts import KeptParts

__all__ = ["Banks"]


@dataclass(frozen=True)
class Banks:
    """Asks ``backbone`` about noised images."""

    backbone: Backbone
    seed: int
    precision: str
    parts: KeptParts = field(default_factory=KeptParts)

    def fill(self, images: Clean | Tensor, stream: str, **how: Any) -> NoisedBank:
        """`fill_bank` of ``images`` ``(N, *latent_shape)``; ``how`` are its further arguments."""

        def make() -> dict[str, Tensor]:
            return fill_bank(self.backbone, images, self.seed, stream, precision=self.precision, **how).tensors()

        return NoisedBank.of(self.parts(f"bank-{stream}", make), len(images), self.backbone.device)
