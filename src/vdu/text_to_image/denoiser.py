"""The text-conditional network of a miniature Stable Diffusion and its text encoder, trained together.

    L = E_{x, t, ε, c} [ w_t ‖v − v_θ(z_t, t, τ(c))‖² ],   v = √ᾱ ε − √(1 − ᾱ) z,   w_t = min(SNR_t, γ) / (SNR_t + 1)

v-prediction: Salimans & Ho, arXiv 2202.00512; the weight is min-SNR for it (Hang et al., arXiv 2303.09556). z are the
autoencoder's latents at unit variance. τ is a small CLIP text transformer (Radford et al., arXiv 2103.00020) that
starts from nothing, so it learns what the pictures ask of it.
"""

from __future__ import annotations

import copy
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from vdu.checkpoint import load_state, save_state, write_tensors
from vdu.corpora.emoji import Emoji
from vdu.ema import ema_update
from vdu.seeding import generator
from vdu.text_to_image.recipe import TextRecipe
from vdu.text_to_image.templates import caption
from vdu.training import checkpoint_steps, cycled_learning_rate, min_snr_weight

__all__ = ["Denoiser", "train_denoiser"]


@dataclass(frozen=True)
class Denoiser:
    """The averaged network and text encoder."""

    unet: UNet2DConditionModel
    text_encoder: Any


def _new_modules(recipe: TextRecipe, tokenizer: Any) -> nn.ModuleDict:
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(recipe.training.seed)
    marks = {f"{mark}_token_id": getattr(tokenizer, f"{mark}_token_id") for mark in ("bos", "eos", "pad")}
    text = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), **marks, **recipe.text_encoder))
    unet = UNet2DConditionModel(**recipe.unet)
    # At so few positions torch's fused attention takes twice as long backwards on a CPU.
    unet.set_attn_processor(AttnProcessor())
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
    z = latents[index]
    # Stratified times: one in each of B equal parts of the range, so that the loss varies less from batch to batch.
    share = (torch.arange(len(z)) + torch.rand(len(z), generator=g)) / len(z)
    t = (share * scheduler.config.num_train_timesteps).long().clamp(max=scheduler.config.num_train_timesteps - 1)
    eps = torch.randn(z.shape, generator=g)
    v = scheduler.get_velocity(z, eps, t)
    with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
        text = modules["text"](tokens).last_hidden_state
        predicted = modules["unet"](scheduler.add_noise(z, eps, t), t, encoder_hidden_states=text).sample.float()
    alpha_bar = scheduler.alphas_cumprod[t]
    weight = min_snr_weight(alpha_bar, settings.min_snr_gamma) * alpha_bar  # SNR / (SNR + 1) = ᾱ
    return (weight * (predicted - v).pow(2).mean(dim=(1, 2, 3))).mean()


def train_denoiser(
    recipe: TextRecipe, latents: Tensor, emoji: Emoji, tokenizer: Any, out: Path, log_every_steps: int = 50
) -> Denoiser:
    """Train on scaled ``latents`` ``(N, C, H, W)`` of the pictures of ``emoji``.

    Goes on where an earlier run into ``out`` stopped. Writes ``out/checkpoints/step-*.safetensors`` (the network's
    averaged weights, for the posterior) and ``out/log.jsonl``.
    """
    settings = recipe.training
    model = _new_modules(recipe, tokenizer)
    average = copy.deepcopy(model).eval()
    scheduler = DDPMScheduler(**recipe.noise)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    state, modules = out / "state.safetensors", {"model": model, "ema": average}
    first = load_state(state, modules, optimizer, recipe.sha256()) if state.exists() else 0
    out.mkdir(parents=True, exist_ok=True)
    saved_at, started, total = checkpoint_steps(settings), time.monotonic(), 0.0
    with (out / "log.jsonl").open("a") as log:
        for step in range(first, settings.steps):
            optimizer.param_groups[0]["lr"] = cycled_learning_rate(settings, step)
            loss = _loss(model, scheduler, latents, emoji, tokenizer, recipe, step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), settings.max_gradient_norm)
            optimizer.step()
            ema_update(average, model, settings.ema_decay, step)
            total, done = total + loss.item(), step + 1
            if done % log_every_steps == 0:
                seconds = round(time.monotonic() - started, 1)
                log.write(json.dumps({"step": done, "loss": total / log_every_steps, "seconds": seconds}) + "\n")
                log.flush()
                total = 0.0
            if done in saved_at:
                write_tensors(out / "checkpoints" / f"step-{done:06d}.safetensors", average["unet"].state_dict())
            if done % settings.state_every_steps == 0:
                save_state(state, done, modules, optimizer, recipe.sha256())
    return Denoiser(average["unet"], average["text"])
