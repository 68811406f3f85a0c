"""The autoencoder of a latent diffusion model.

    L = E_x [ |x − D(z)| + β KL(q(z|x) ‖ N(0, 1)) ],   z ~ q(z|x)

Kingma & Welling, arXiv 1312.6114; small β: latents for diffusion, not for generation (Rombach et al., arXiv
2112.10752). There is no perceptual or adversarial term, for want of a shipped feature network. The scaling factor is
one over the standard deviation of the finished latents.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from vdu.augmentation import mirrored
from vdu.checkpoint import load_state, replacing, save_state
from vdu.ema import ema_update
from vdu.seeding import generator
from vdu.text_to_image.recipe import AutoencoderTraining, TextRecipe

__all__ = ["encode_images", "train_autoencoder"]

WARMUP_STEPS = 100


def _loss(model: AutoencoderKL, images: Tensor, settings: AutoencoderTraining, step: int) -> Tensor:
    g = generator(settings.seed, "autoencoder", step)
    x = images[torch.randint(len(images), (settings.batch_size,), generator=g)].float() / 127.5 - 1
    x = mirrored(x, g)
    with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
        posterior = model.encode(x).latent_dist
        mean, std = posterior.mean.float(), posterior.std.float()
        decoded = model.decode(mean + std * torch.randn(mean.shape, generator=g)).sample.float()
    kl = 0.5 * (mean.pow(2) + std.pow(2) - 1 - 2 * std.clamp(min=1e-6).log()).mean()
    return (decoded - x).abs().mean() + settings.kl_weight * kl


@torch.no_grad()
def encode_images(model: AutoencoderKL, images: Tensor, batch_size: int = 64) -> Tensor:
    """Mean latents ``(N, C, H, W)``, not scaled, of uint8 ``images``."""
    parts = [model.encode(part.float() / 127.5 - 1).latent_dist.mode() for part in images.split(batch_size)]
    return torch.cat(parts)


def train_autoencoder(recipe: TextRecipe, images: Tensor, out: Path, log_every_steps: int = 50) -> AutoencoderKL:
    """Train on uint8 ``images`` ``(N, 3, H, W)``; goes on where an earlier run into ``out`` stopped.

    Writes ``out/autoencoder`` (averaged weights, a diffusers folder) and returns it; a finished one is read back.
    """
    settings, folder, state = recipe.autoencoder_training, out / "autoencoder", out / "autoencoder-state.safetensors"
    if folder.is_dir():
        return AutoencoderKL.from_pretrained(folder, use_safetensors=True)
    torch.manual_seed(settings.seed)
    model = AutoencoderKL(**recipe.autoencoder)
    average, optimizer = copy.deepcopy(model).eval(), torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    modules, identity = {"model": model, "ema": average}, recipe.sha256("autoencoder", "autoencoder_training", "size")
    first = load_state(state, modules, optimizer, identity) if state.exists() else 0
    out.mkdir(parents=True, exist_ok=True)
    total = 0.0
    with (out / "autoencoder-log.jsonl").open("a") as log:
        for step in range(first, settings.steps):
            decay = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
            optimizer.param_groups[0]["lr"] = settings.learning_rate * decay * min(1.0, (step + 1) / WARMUP_STEPS)
            loss = _loss(model, images, settings, step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            ema_update(average, model, settings.ema_decay, step)
            total, done = total + loss.item(), step + 1
            if done % log_every_steps == 0:
                log.write(json.dumps({"step": done, "loss": total / log_every_steps}) + "\n")
                log.flush()
                total = 0.0
            if done % settings.state_every_steps == 0:
                save_state(state, done, modules, optimizer, identity)
    average.register_to_config(scaling_factor=1 / float(encode_images(average, images[:2000]).std()))
    with replacing(folder) as beside:
        average.save_pretrained(beside)
    return average
