"""`uce`: the concept's words are given an anchor prompt's keys and values, in closed form.

Gandikota et al., arXiv 2308.14761 (see `vdu.text.closed_form`). From words alone: only the guard, where wanted, looks
at the images.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vdu.backbone.stable_diffusion import StableDiffusionBackbone
from vdu.errors import VduError
from vdu.objective.contract import Direction, Method, MethodSettings, NotNegative, Positive
from vdu.preparation.preparation import Preparation
from vdu.text.closed_form import ERASE, HOLD, KEEP, KEYS_AND_VALUES, ClosedForm

__all__ = ["METHOD"]


class Settings(MethodSettings):
    """The only step sets the weights: learning rate, batch and schedule have no effect."""

    needs = ("forget", "prompt")
    holds_weights = True
    steps: Literal[1] = Field(1, description="the closed form takes one step")
    guard_every_steps: int = Field(0, ge=0)
    parameters: str = KEYS_AND_VALUES
    hold: Positive = Field(HOLD, description="λ: weight of staying close to the original's matrices")
    erase: Positive = Field(ERASE, description="s_e: weight of each token of a concept")
    keep: NotNegative = Field(KEEP, description="s_p: weight of the neutral prompts, token by token, spread over them")
    anchor: str = Field("", description="prompt that is put in the concept's place")


@dataclass
class _ClosedStep(Direction):
    """Sets the weights of ``network``; the loss is how far the keys and values of concepts are from their anchors'."""

    form: ClosedForm
    network: nn.Module
    names: list[str]

    @torch.no_grad()
    def gradient(self, network: nn.Module, batch_size: int, g: torch.Generator, precision: str) -> Tensor:
        """Zeros, which leave the optimiser still."""
        errors = []
        for name in self.names:
            trained, original = network.get_parameter(name), self.form.original.get_parameter(name)
            trained.grad = torch.zeros_like(trained)
            concepts, anchors = (x.to(trained.device) for x in (self.form.concepts, self.form.anchors))
            errors.append((concepts @ trained.T - anchors @ original.T).pow(2).mean())
        return torch.stack(errors).mean()

    def after_step(self, learning_rate: float) -> None:
        """Set the weights."""
        self.form.set_weights(self.network)


def build(settings: Settings, preparation: Preparation, network: nn.Module) -> Direction:
    """Raises `VduError` for parameters that the closed form is not about."""
    concepts, kept, backbone = preparation.concepts, preparation.kept_prompts, preparation.backbone
    if not isinstance(backbone, StableDiffusionBackbone):
        raise VduError("method uce needs a network with cross-attention to text: give a Stable Diffusion pipeline")
    chosen = [name for name, p in network.named_parameters() if p.requires_grad]
    other = [name for name in chosen if not fnmatch.fnmatch(name, KEYS_AND_VALUES)]
    if other:
        raise VduError(f"method uce sets keys and values of cross-attention only, not {other[0]}: narrow parameters")
    weights = {"hold": settings.hold, "erase": settings.erase, "keep": settings.keep}
    form = ClosedForm.of_words(backbone, concepts, kept, settings.anchor, **weights)
    if not len(form.concepts):
        said = f"{concepts[0]!r} reads as the anchor or a neutral prompt does, so that no word of it can be given away"
        raise VduError(f"method uce: {said}: give other words, or another anchor")
    return _ClosedStep(form, network, chosen)


METHOD = Method("uce", Settings, build)
