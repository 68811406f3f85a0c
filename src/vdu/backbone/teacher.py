"""A teacher: a second diffusion model of the same shape, whose score is that of the undesired content."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vdu.backbone import Backbone, load_backbone, source_of, weights_sha256
from vdu.backbone.single_file import is_single_file
from vdu.backbone.stable_diffusion import StableDiffusionBackbone
from vdu.errors import VduError
from vdu.seeding import generator

__all__ = ["Teacher", "is_only_file", "load_teacher"]

PROBE_TEXTS = ("", "a photograph of a red house")
LARGEST_DIFFERENCE = 0.05  # of what they say, between copies of different precision


@dataclass(frozen=True)
class Teacher:
    """A frozen ``network``, its hash and how it was named."""

    network: nn.Module
    sha256: str
    source: str

    def record(self) -> dict[str, str]:
        """What a result file says of it."""
        return {"source": self.source, "sha256": self.sha256}


def _text_width(backbone: Backbone) -> int | None:
    width: int | None = backbone.network.config.get("cross_attention_dim")
    return width


def _is_file(model: Any) -> bool:
    return isinstance(model, (str, Path)) and is_single_file(str(model))


def is_only_file(teacher: Any, model: Any) -> bool:
    """Whether ``teacher`` is a checkpoint file and ``model`` none, so that configs are for the teacher alone."""
    return _is_file(teacher) and not _is_file(model)


def _check_same_language(other: Backbone, backbone: Backbone) -> None:
    """Raise `VduError` where a teacher, which is asked in the model's latents and text encodings, learned others."""
    if not isinstance(other, StableDiffusionBackbone) or not isinstance(backbone, StableDiffusionBackbone):
        return
    picture = torch.rand(1, *backbone.shape, generator=generator(0, "probe")) * 2 - 1
    spoken = {
        "VAE (or its scaling_factor)": [b.encode(picture) for b in (other, backbone)],
        "text encoder": [b.states_of(PROBE_TEXTS).cpu() for b in (other, backbone)],
    }
    for part, (theirs, ours) in spoken.items():
        if theirs.shape != ours.shape or (theirs - ours).norm() > LARGEST_DIFFERENCE * ours.norm():
            raise VduError(f"the teacher's {part} is another than the model's: give a teacher that was trained with it")


def load_teacher(model: Any, backbone: Backbone, config: str | Path | None = None) -> Teacher:
    """From a pipeline, folder, zoo name, hub id or checkpoint file; ``config`` is as of `vdu.backbone.load_backbone`.

    Raises `VduError` where its predictions cannot be set beside the model's: another architecture, other images,
    prediction type or schedule, another VAE or text encoder.
    """
    other = load_backbone(model, config=config if _is_file(model) else None)
    if type(other) is not type(backbone):
        kinds = f"{type(other.pipeline).__name__}, the model a {type(backbone.pipeline).__name__}"
        raise VduError(f"the teacher is a {kinds}: give a teacher of the model's architecture")
    if other.shape != backbone.shape:
        raise VduError(f"the teacher makes images of {other.shape}, the model of {backbone.shape}: give a like teacher")
    if other.prediction_type != backbone.prediction_type:
        kinds = f"{other.prediction_type}, the model {backbone.prediction_type}"
        raise VduError(f"the teacher predicts {kinds}: give a teacher with the model's prediction type")
    if other.latent_shape != backbone.latent_shape or _text_width(other) != _text_width(backbone):
        raise VduError("the teacher's latents or prompts are of another size than the model's: give a like teacher")
    same_length = other.timesteps == backbone.timesteps
    if not (same_length and torch.allclose(other.alpha_bar, backbone.alpha_bar, atol=1e-5)):
        raise VduError("the teacher has another noise schedule than the model: give one trained with the same")
    _check_same_language(other, backbone)
    digest = weights_sha256(other.network)
    if digest == weights_sha256(backbone.network):
        raise VduError("the teacher is the model itself: give a model of the undesired content alone")
    return Teacher(other.network, digest, source_of(model))
