"""The text-conditional network of a miniature Stable Diffusion and its text encoder, trained together.

    min over θ, τ of the `training_loss` of f_θ(z_t, t, τ(c))

z are the autoencoder's latents at unit variance. τ is a small CLIP text transformer (Radford et al., arXiv 2103.00020)
that starts from nothing, so it learns what the pictures ask of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from vdu.backbone.attention import write_out_attention
from vdu.corpora.emoji import Emoji
from vdu.diffusion.training_loss import training_loss
from vdu.precision import autocast
from vdu.seeding import generator
from vdu.training.averaged_training import train_with_average
from vdu.training.denoiser import checkpoint_writer, cycled_learning_rate, training_run
from vdu.training.text_to_image.recipe import TextRecipe
from vdu.training.text_to_image.templates import caption

__all__ = ["Denoiser", "train_denoiser"]


@dataclass(frozen=True)
class Denoiser:
    """The averaged network and text encoder."""

    unet: UNet2DConditionModel
    text_encoder: Any


def _new_modules(recipe: TextRecipe, tokenizer: Any) -> nn.ModuleDict:
    from transformers import CLIPTextModel

    torch.manual_seed(recipe.training.seed)
    marks = {f"{mark}_token_id": getattr(tokenizer, f"{mark}_token_id") for mark in ("bos", "eos", "pad")}
    text = CLIPTextModel(recipe.text_config(vocab_size=len(tokenizer), **marks))
    unet = UNet2DConditionModel(**recipe.unet)
    write_out_attention(unet, recipe.unet["sample_size"], recipe.unet["sample_size"])
    return nn.ModuleDict({"unet": unet, "text": text})


def _tokens(tokenizer: Any, texts: list[str]) -> Tensor:
    tokens: Tensor = tokenizer(
        texts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    ).input_ids
    return tokens


def _loss(
    modules: nn.ModuleDict,
    scheduler: DDPMScheduler,
    latents: Tensor,
    emoji: Emoji,
    tokenizer: Any,
    recipe: TextRecipe,
    step: int,
) -> Tensor:
    settings, g = recipe.training, generator(recipe.training.seed, "train", step)
    index = torch.randint(len(latents), (settings.batch_size,), generator=g)
    tokens = _tokens(tokenizer, [caption(emoji.objects[i], emoji.styles[i], g) for i in index.tolist()])

    def predict(z_t: Tensor, t: Tensor) -> Tensor:
        with autocast(modules["unet"], settings.precision):
            text = modules["text"](tokens).last_hidden_state
            predicted: Tensor = modules["unet"](z_t, t, encoder_hidden_states=text).sample
        return predicted

    return training_loss(predict, scheduler, latents[index], settings.min_snr_gamma, g)


def train_denoiser(recipe: TextRecipe, latents: Tensor, emoji: Emoji, tokenizer: Any, out: Path) -> Denoiser:
    """Train on scaled ``latents`` ``(N, C, H, W)`` of the pictures of ``emoji``.

    Goes on where an earlier run into ``out`` stopped. Writes ``out/checkpoints/step-*.safetensors`` (the network's
    averaged weights, for the posterior) and ``out/log.jsonl``.
    """
    settings = recipe.training
    model, scheduler = _new_modules(recipe, tokenizer), DDPMScheduler(**recipe.noise)
    average = train_with_average(
        model,
        training_run(settings, out, recipe, emoji.sha256),
        lambda step: _loss(model, scheduler, latents, emoji, tokenizer, recipe, step),
        lambda step: cycled_learning_rate(settings, step),
        checkpoint_writer(settings, out, lambda average: average.get_submodule("unet")),
    )
    return Denoiser(average["unet"], average["text"])
