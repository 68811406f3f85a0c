"""`salun`: random labels for the forget images, a retain loss, and a mask that lets only salient parameters move.

    L = A + α E_{x ~ D_r, t, ε} ‖y − f_θ(x_t, t)‖²,   ∇ ← m ⊙ ∇,   m: the half of the parameters that D_f moves most

Fan et al., arXiv 2310.12508. Changed for an unconditional model, which has no class label to swap: the label of a
denoiser is its clean image, so ``relabel`` teaches at a noised forget image the clean image of a random retained one
(`AnotherImage`); ``ascent`` is the published variant A = −‖y − f_θ‖², which needs no labels. α is for means over
dimensions; α = 3 stands for the published 10⁻³ beside a sum over dimensions. With text, where forget images and images
to keep have prompts that differ, ``relabel`` is the published form: at a noised forget image asked with its own prompt
the network is taught what it says to a prompt of D_r (`AnotherPrompt`; published there: α = .1, rate 10⁻⁵).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vdu.backbone import Backbone
from vdu.diffusion.denoising import Denoising
from vdu.diffusion.noising import Clean
from vdu.objective.another_prompt import AnotherPrompt
from vdu.objective.contract import Count, Method, MethodSettings, NotNegative, Objective, Positive
from vdu.objective.plasticity import Ascent, Term
from vdu.objective.saliency import SaliencyMask, forget_gradient
from vdu.objective.surrogate import AnotherImage, one_of
from vdu.preparation.preparation import Preparation

__all__ = ["METHOD"]


class Settings(MethodSettings):
    """Half of the parameters, as published."""

    needs = ("forget", "retain")
    holds_weights = True
    optimizer: Literal["adam"] = Field("adam", description="muon would move what the mask holds")
    steps: Count = 200
    learning_rate: Positive = 1e-4
    alpha: NotNegative = Field(3.0, description="α: weight of the retain loss")
    salient_share: float = Field(0.5, gt=0, le=1, description="share of the parameters that may move")
    forgetting: Literal["relabel", "ascent"] = Field("relabel", description="relabel or ascent")


@dataclass
class _Masked(Objective):
    mask: SaliencyMask | None = None

    def after_backward(self) -> None:
        """Hold the parameters that are not salient."""
        if self.mask is not None:
            self.mask.apply()


def _relabelling(backbone: Backbone, forget: Clean, retain: Clean) -> Term:
    """By prompts where they tell what is to be forgotten from what is to be kept, else by images."""
    if forget.c is not None and retain.c is not None and forget.c.all():
        others = retain.c[~torch.isin(retain.c, forget.c)]
        if len(others):
            return AnotherPrompt(backbone, forget, others, own="asked")
    return AnotherImage(backbone, forget, one_of(retain))


def build(settings: Settings, preparation: Preparation, network: nn.Module) -> Objective:
    """The mask is computed here, at θ*, from the seed."""
    backbone, forget, retain = preparation.backbone, preparation.forget, preparation.retain
    relabel = settings.forgetting == "relabel"
    forgetting = _relabelling(backbone, forget, retain) if relabel else Ascent(backbone, forget)
    keeping = Denoising(backbone, retain)

    def loss(network: nn.Module, batch_size: int, g: torch.Generator) -> Tensor:
        return forgetting(network, batch_size, g) + settings.alpha * keeping(network, batch_size, g)

    gradient = forget_gradient(backbone, network, forget, preparation.seed)
    return _Masked(0.0, loss, mask=SaliencyMask(network, gradient, settings.salient_share))


METHOD = Method("salun", Settings, build)
