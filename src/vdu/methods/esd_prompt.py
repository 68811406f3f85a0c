"""`esd-prompt`: asked with the concept, the network learns the opposite of what the concept does to the original.

    L = E_{x ~ p_*(x | c), t, ε} ‖f_θ(x_t, t, c) − [f_*(∅) − η (f_*(c) − f_*(∅))](x_t, t)‖²

Gandikota et al., arXiv 2303.07345: ESD-x, and ESD-u with ``parameters="not-cross-attention"``. Coefficients sum to one,
so f may be ε or v. Changed: published x_t come from a guided roll-out of the changing network to a random step; here
they are noised samples that the original makes once, guided, with the concept prompt. From words alone: only the
guard, where it is wanted, looks at the forget images.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from vdu.backbone import Backbone
from vdu.diffusion.denoising import regression_error
from vdu.diffusion.noising import Clean, draw
from vdu.objective.contract import Count, Method, MethodSettings, NotNegative, Objective, Positive
from vdu.preparation.preparation import Preparation

__all__ = ["METHOD", "NegativeGuidance"]


class Settings(MethodSettings):
    """Steps, batch, learning rate and η as published for Stable Diffusion."""

    needs = ("forget", "prompt")
    steps: Count = 1000
    batch_size: Count = 1
    learning_rate: Positive = 1e-5
    guard_every_steps: int = Field(0, ge=0)
    parameters: str = "cross-attention"
    eta: NotNegative = Field(1.0, description="η: how far from the prediction at the concept's prompt")
    concept_images: Count = Field(256, description="samples that the original makes with the concept prompt")


class NegativeGuidance:
    """Regress, at noised ``images`` and their own prompts, on the original guided away from these prompts."""

    def __init__(self, backbone: Backbone, images: Clean, eta: float) -> None:
        self.backbone, self.images, self.eta = backbone, images, eta

    def __call__(self, network: nn.Module, batch_size: int, g: torch.Generator) -> Tensor:
        """L on a random batch; a scalar."""
        noised, original = draw(self.backbone, self.images, batch_size, g), self.backbone.network
        with torch.no_grad():
            empty = self.backbone.output(original, noised.x_t, noised.t)
            concept = self.backbone.output(original, noised.x_t, noised.t, noised.c)
        target = empty - self.eta * (concept - empty)
        return regression_error(self.backbone, network, noised, target).mean()


def build(settings: Settings, preparation: Preparation, network: nn.Module) -> Objective:
    """A = negative guidance, γ = 0."""
    images = preparation.samples_of(preparation.concepts, settings.concept_images)
    return Objective(0.0, NegativeGuidance(preparation.backbone, images, settings.eta))


METHOD = Method("esd-prompt", Settings, build)
