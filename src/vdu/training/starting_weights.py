"""What a pre-training begins with: random weights, or those of another DDPM of the same geometry and noise.

The same tensors fit networks that compute something else with them (other groups of a norm, other heads, a v- for an
ε-prediction): so every setting is compared, not the shapes alone.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel

from vdu.backbone import Backbone, load_backbone, weights_sha256
from vdu.errors import VduError
from vdu.training.recipe import Recipe

__all__ = ["starting_weights"]


def _settings(model: UNet2DModel) -> dict[str, str]:
    return {name: json.dumps(value) for name, value in model.config.items() if not name.startswith("_")}


def _first_difference(backbone: Backbone, model: UNet2DModel, scheduler: DDPMScheduler) -> str | None:
    """What is otherwise in the model to start from, or None."""
    if not isinstance(backbone.network, UNet2DModel):
        return "it is no unconditional DDPM"
    there, here = _settings(backbone.network), _settings(model)
    for name, value in here.items():
        if there.get(name) != value:
            return f"its {name} is {there.get(name)}, the recipe's {value}"
    if backbone.prediction_type != scheduler.config.prediction_type:
        return f"it predicts {backbone.prediction_type}, the recipe's network {scheduler.config.prediction_type}"
    alpha_bar = backbone.alpha_bar.float()
    if alpha_bar.shape != scheduler.alphas_cumprod.shape or not torch.allclose(alpha_bar, scheduler.alphas_cumprod):
        return "its noise schedule is another one"
    return None


def starting_weights(recipe: Recipe, scheduler: DDPMScheduler) -> tuple[UNet2DModel, dict[str, Any]]:
    """The network of ``recipe`` at step 0, and what its provenance says of a model that it starts from.

    Raises `VduError` for a model of another kind, and for an oracle that would start from one: nobody could say that
    those weights never saw the class that is left out.
    """
    torch.manual_seed(recipe.training.seed)
    model, start = UNet2DModel(**recipe.unet), recipe.start_from
    if start is None:
        return model, {}
    if recipe.without:
        classes = ", ".join(recipe.without)
        raise VduError(f"{start}, which recipe {recipe.name} starts from, may have seen {classes}: remove start_from")
    begun = load_backbone(start)
    difference = _first_difference(begun, model, scheduler)
    if difference:
        raise VduError(f"recipe {recipe.name} cannot start from {start}: {difference}")
    model.load_state_dict(begun.network.state_dict())
    return model, {"started_from": {"model": start, "sha256": weights_sha256(begun.network)}}
