"""What a pipeline must have before anything is done with it: whole, finite weights and a known noise schedule."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from torch import nn

from vdu.backbone.contract import SOLVER
from vdu.errors import VduError, in_one_line, nearest

__all__ = ["PREDICTION_TYPES", "check_schedule", "check_weights"]

STEPS_TRIED = 12
FUSED = {"to_qkv", "to_kv"}
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def check_weights(pipeline: Any) -> None:
    """Raises `VduError` for weights that are absent, not finite, of less than 16 bits, or beside the network's own."""
    for part, module in pipeline.components.items():
        for name, parameter in module.named_parameters() if isinstance(module, nn.Module) else ():
            if parameter.is_meta:
                raise VduError(f"the {part}'s weights lack {name!r}: the file is not whole, or of another network")
            if not parameter.is_floating_point() or parameter.dtype.itemsize < 2:
                kind = str(parameter.dtype).removeprefix("torch.")
                raise VduError(f"the {part}'s weights are {kind}: give the model in float32, float16 or bfloat16")
            if not torch.isfinite(parameter.detach()).all():
                raise VduError(f"the {part}'s weights {name!r} are not all finite: give a model that works")
            if part == "unet" and (".lora_" in name or ".base_layer." in name):
                raise VduError("the pipeline has a LoRA loaded: call its fuse_lora() and unload_lora_weights() first")
            if part == "unet" and FUSED & set(name.split(".")):
                raise VduError("the U-Net's attention is fused: load it again and leave out fuse_qkv_projections()")


def check_schedule(pipeline: Any) -> None:
    """Raises `VduError` for a prediction type or noise schedule that is not supported."""
    scheduler = pipeline.scheduler
    config, own = scheduler.config, getattr(scheduler, "alphas_cumprod", None)
    kind = config.get("prediction_type")
    if kind not in PREDICTION_TYPES:
        raise VduError(f"prediction type {kind!r} is not supported: {nearest('', PREDICTION_TYPES)}")
    try:
        solver = DPMSolverMultistepScheduler.from_config(config, **SOLVER)
        solver.set_timesteps(min(STEPS_TRIED, solver.config.num_train_timesteps))
        alpha_bar = DDPMScheduler.from_config(config).alphas_cumprod
    except NotImplementedError as error:
        raise VduError(f"noise schedule {config.beta_schedule!r} is not supported") from error
    except ImportError as error:
        raise VduError(f"the noise schedule needs another package ({in_one_line(error)}): install it") from error
    if len(alpha_bar) != config.num_train_timesteps:
        said = f"{len(alpha_bar)} betas for num_train_timesteps {config.num_train_timesteps}"
        raise VduError(f"the noise schedule has {said}: make the scheduler's config agree")
    if not solver.sigmas.isfinite().all():
        raise VduError("the noise schedule's betas reach 1: set rescale_betas_zero_snr in the scheduler's config")
    if own is None or own.shape != alpha_bar.shape or not torch.allclose(own.cpu().float(), alpha_bar, atol=1e-4):
        raise VduError(f"the noise schedule of {type(scheduler).__name__} is not supported: give a DDPM's or DDIM's")
