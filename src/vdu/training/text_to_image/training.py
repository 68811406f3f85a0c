"""`vdu train` for a text-to-image recipe: corpus → autoencoder, judges → denoiser → `StableDiffusionPipeline`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, StableDiffusionPipeline

from vdu.corpora.emoji import read_emoji
from vdu.output import replacing
from vdu.training.denoiser import refuse_other_folder, write_provenance
from vdu.training.text_to_image.autoencoder import decode_latents, encode_images, train_autoencoder
from vdu.training.text_to_image.denoiser import Denoiser, train_denoiser
from vdu.training.text_to_image.evaluators import CLASSES, train_evaluator
from vdu.training.text_to_image.recipe import TextRecipe
from vdu.training.text_to_image.tokenizer import make_tokenizer

__all__ = ["train_text_to_image"]


def _assembled(recipe: TextRecipe, vae: AutoencoderKL, tokenizer: Any, denoiser: Denoiser) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=denoiser.text_encoder,
        tokenizer=tokenizer,
        unet=denoiser.unet,
        scheduler=recipe.sampling_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def train_text_to_image(recipe: TextRecipe, data: Path, out: Path) -> Path:
    """Train on the rendered corpus in ``data``; goes on where an earlier run into ``out`` stopped.

    Writes ``out/pipeline`` (averaged weights), ``out/checkpoints``, ``out/*-classifier``, logs and
    ``out/provenance.json``. Returns the pipeline folder.
    """
    refuse_other_folder(out)
    emoji = read_emoji(data, recipe.size)
    tokenizer = make_tokenizer(data, recipe.merges, recipe.text_config().max_position_embeddings)
    vae = train_autoencoder(recipe, emoji, out)
    latents = encode_images(vae, emoji.images)
    decoded = decode_latents(vae, latents)
    for domain in CLASSES:
        train_evaluator(recipe, emoji, decoded, domain, out)
    denoiser = train_denoiser(recipe, latents * vae.config.scaling_factor, emoji, tokenizer, out)
    with replacing(out / "pipeline") as beside:
        _assembled(recipe, vae, tokenizer, denoiser).save_pretrained(beside)
    write_provenance(out, f"vdu train {recipe.name} --data DATA --out OUT", recipe, recipe.sha256(), emoji)
    return out / "pipeline"
