"""What a method is: settings, and two slots filled from what it may use.

    L(θ) = (1 − γ) A(θ) + γ B(θ)

A (plasticity) is a mean over batch and dimensions; B is a mean over batch and dimensions (`outputs`, Bayes target) or
over parameters (`weights`), so that one γ means the same on networks of any size. Panda et al., arXiv 2510.04058.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from vdu.bounds import Count, Fraction, NotNegative, Positive
from vdu.diffusion.noised_bank import BANK_ITEMS
from vdu.errors import VduError
from vdu.objective.plasticity import Term
from vdu.objective.stability import WeightStability
from vdu.precision import autocast
from vdu.preparation.preparation import OWN_SAMPLES, SCORE_STEPS, Preparation
from vdu.text.closed_form import ClosedForm
from vdu.weights.optimizers import OptimizerName

__all__ = [
    "Count",
    "Direction",
    "Fraction",
    "Method",
    "MethodSettings",
    "NotNegative",
    "Objective",
    "Positive",
    "Samples",
]

Samples = Annotated[int, Field(ge=8)]  # fewer cannot be told apart


class MethodSettings(BaseModel):
    """Settings that every method has; a method adds its own. Unknown names are refused.

    ``needs`` names what must be given, ``takes`` what may be (see `vdu.objective.needs`). ``holds_weights``: it
    penalises, masks or sets single weights of the network, which a LoRA leaves as they are. ``of_steps``: settings that
    nothing which is kept before the first step depends on, so that a run with others there begins from it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    needs: ClassVar[tuple[str, ...]] = ("forget",)
    takes: ClassVar[tuple[str, ...]] = ()
    holds_weights: ClassVar[bool] = False
    of_steps: ClassVar[frozenset[str]] = frozenset()

    steps: Count = Field(100, description="most optimiser steps; the guard may stop earlier")
    batch_size: Count = Field(32, description="images per term and step")
    optimizer: OptimizerName = Field("adam", description="muon needs fewer steps, at other rates")
    learning_rate: Positive = Field(1e-4, description="of the optimizer")
    schedule: Literal["constant", "cosine"] = Field("constant", description="of the learning rate over the steps")
    max_gradient_norm: Positive = Field(1.0, description="longer gradients are cut to it")
    ema_decay: Fraction = Field(0.0, description="0 hands out the last weights instead of their average")
    parameters: str = Field("*", description="glob of names to train, (not-)cross-attention, or lora")
    lora_rank: Count = Field(8, description="rank of the change to each attention projection, with parameters=lora")
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, a third more time")
    own_samples: Samples = Field(OWN_SAMPLES, description="samples of the original that method and guard learn from")
    bank_items: Count = Field(
        BANK_ITEMS, description="noised forget images, and own samples, in the banks; four a picture or more"
    )
    score_steps: Count = Field(SCORE_STEPS, description="steps in which the score of the forget set is fitted")
    guard_every_steps: int = Field(10, ge=0, description="0: nobody looks, and the last step is handed out")
    stop_share: NotNegative | None = Field(0.0, description="stop when the guard's forget share is down to this")

    def for_text(self) -> Self:
        """The same for a model that takes text: a method may have other defaults there."""
        return self

    @classmethod
    def described(cls) -> dict[str, tuple[Any, str]]:
        """Default and description of every setting, by name."""
        inherited = [kind.model_fields for kind in cls.__mro__ if issubclass(kind, MethodSettings)]
        said = {name: [fields[name].description for fields in inherited if name in fields] for name in cls.model_fields}
        return {
            name: (field.default, next((text for text in said[name] if text), ""))
            for name, field in cls.model_fields.items()
        }


class Direction:
    """What the loop asks of a method in one step; the loop itself knows no mathematics.

    A method whose loss fits two slots is an `Objective`. One that has to put several gradients together overrides
    `gradient`; whatever that reads must depend on ``g`` and on the weights alone, so that a run can be resumed.
    """

    weights: WeightStability | None = None

    def begin(self, network: nn.Module) -> None:
        """What is done to the network, which is the original until then, before the first step; nothing by default."""

    def gradient(self, network: nn.Module, batch_size: int, g: torch.Generator, precision: str) -> Tensor:
        """Leave the direction in the ``grad`` (empty before) of the trained parameters; returns the loss, detached."""
        raise NotImplementedError

    def after_step(self, learning_rate: float) -> None:
        """What follows the optimiser's step; nothing by default."""


@dataclass
class Objective(Direction):
    """The loss of one method in two slots, and its gradient by one backward pass. ``start``: where it begins."""

    gamma: float
    plasticity: Term
    stability: Term | None = None
    weights: WeightStability | None = None
    explicit: bool = False
    start: ClosedForm | None = None

    def begin(self, network: nn.Module) -> None:
        if self.start is not None:
            self.start.set_weights(network)

    def loss(self, network: nn.Module, batch_size: int, g: torch.Generator) -> Tensor:
        """(1 − γ) A + γ B_outputs on one random batch for each term; a scalar with a graph."""
        total = (1 - self.gamma) * self.plasticity(network, batch_size, g)
        return total if self.stability is None else total + self.gamma * self.stability(network, batch_size, g)

    def gradient(self, network: nn.Module, batch_size: int, g: torch.Generator, precision: str) -> Tensor:
        """∇ of the loss, and what `after_backward` makes of it."""
        with autocast(network, precision):
            loss = self.loss(network, batch_size, g)
        if loss.numel() != 1 or not loss.requires_grad:
            what = f"has the shape {tuple(loss.shape)}" if loss.numel() != 1 else "does not depend on the network"
            raise VduError(f"the method's loss {what}: each term must return a scalar with a graph")
        loss.backward()
        self.after_backward()
        return loss.detach()

    def after_backward(self) -> None:
        """Add γ∇B of the weight regulariser where the explicit form is asked for."""
        if self.weights is not None and self.explicit:
            self.weights.add_gradient(self.gamma)

    def after_step(self, learning_rate: float) -> None:
        """Take the proximal step of the weight regulariser."""
        if self.weights is not None and not self.explicit:
            self.weights.proximal_step(learning_rate, self.gamma)


@dataclass(frozen=True)
class Method:
    """A name, its settings class, and how its objective is built for one run."""

    name: str
    settings: type[MethodSettings]
    build: Callable[[Any, Preparation, nn.Module], Direction]

    @property
    def summary(self) -> str:
        """What it does: the first line of its file's docstring, without the name."""
        said = sys.modules[self.build.__module__].__doc__ or ""
        return said.splitlines()[0].partition(": ")[2]
