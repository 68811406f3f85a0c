"""The autoencoder of a latent diffusion model.

    L = E_x [ |x − D(z)| + β KL(q(z|x) ‖ N(0, 1)) ],   z ~ q(z|x)

Kingma & Welling, arXiv 1312.6114; small β: latents for diffusion, not for generation (Rombach et al., arXiv
2112.10752). There is no perceptual or adversarial term, for want of a shipped feature network. The scaling factor is
one over the standard deviation of the finished latents.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from vdu.corpora.emoji import Emoji
from vdu.errors import VduError
from vdu.images.image_set import to_bytes
from vdu.output import replacing
from vdu.precision import autocast
from vdu.seeding import generator
from vdu.training.augmentation import mirrored
from vdu.training.averaged_training import TrainingRun, train_with_average
from vdu.training.text_to_image.recipe import AutoencoderTraining, TextRecipe
from vdu.weights.checkpoint import check_state
from vdu.weights.schedules import cosine_to_zero

__all__ = ["decode_latents", "encode_images", "train_autoencoder"]

WARMUP_STEPS = 100


def _loss(model: AutoencoderKL, images: Tensor, settings: AutoencoderTraining, step: int) -> Tensor:
    g = generator(settings.seed, "autoencoder", step)
    x = images[torch.randint(len(images), (settings.batch_size,), generator=g)].float() / 127.5 - 1
    x = mirrored(x, g)
    with autocast(model, settings.precision):
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


@torch.no_grad()
def decode_latents(model: AutoencoderKL, latents: Tensor, batch_size: int = 64) -> Tensor:
    """uint8 images ``(N, 3, H, W)`` of latents ``(N, C, h, w)`` that are not scaled."""
    return torch.cat([to_bytes(model.decode(part).sample) for part in latents.split(batch_size)])


def _finished(recipe: TextRecipe, folder: Path, run: TrainingRun) -> AutoencoderKL:
    """Where the state of its training is there, too, that must be of this recipe and these pictures."""
    check_state(run.state, {run.identity})
    model = AutoencoderKL.from_pretrained(folder, use_safetensors=True)
    for name, wanted in recipe.autoencoder.items():
        if model.config[name] != wanted:
            raise VduError(f"{folder} is of another recipe (autoencoder.{name}): remove it or choose another --out")
    return model


def train_autoencoder(recipe: TextRecipe, emoji: Emoji, out: Path) -> AutoencoderKL:
    """Train on the pictures of ``emoji``; goes on where an earlier run into ``out`` stopped.

    Writes ``out/autoencoder`` (averaged weights, a diffusers folder) and returns it; a finished one is read back.
    Raises `VduError` where it is of another recipe.
    """
    settings, folder, images = recipe.autoencoder_training, out / "autoencoder", emoji.images
    run = TrainingRun(
        settings.steps,
        settings.state_every_steps,
        settings.ema_decay,
        1.0,
        out / "autoencoder-state.safetensors",
        out / "autoencoder-log.jsonl",
        f"{recipe.sha256('autoencoder', 'autoencoder_training', 'size')} {emoji.sha256}",
    )
    if folder.is_dir():
        return _finished(recipe, folder, run)
    torch.manual_seed(settings.seed)
    model = AutoencoderKL(**recipe.autoencoder)

    def learning_rate_at(step: int) -> float:
        warm = min(1.0, (step + 1) / WARMUP_STEPS)
        return settings.learning_rate * cosine_to_zero(step, settings.steps) * warm

    average = train_with_average(model, run, lambda step: _loss(model, images, settings, step), learning_rate_at)
    average.register_to_config(scaling_factor=1 / float(encode_images(average, images[:2000]).std()))
    with replacing(folder) as beside:
        average.save_pretrained(beside)
    return average
