"""Prompts that ask for the forget images, found from the images alone: textual inversion, one prompt for an image.

    v_i = argmin E_{t, ε} ‖y − f_*(x_t, t, τ(v))‖²,   x_t from the forget image x_i,   v = m + s δ,  δ_0 ~ 0.1 N(0, 1)

τ is the pipeline's own text encoder, v ``(k, D)`` the embeddings of the prompt's words, m and s mean and spread of its
vocabulary; network and encoder stay as they are. Gal et al., arXiv 2208.01618, find one word for a few images of one
thing; one prompt for each image shows how differently a prompt can ask for what is undesired. Without them a method
that is given no words changes what the model makes unasked, and hardly what it makes of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vdu.backbone.stable_diffusion import StableDiffusionBackbone
from vdu.noising import Clean, noised
from vdu.precision import autocast
from vdu.seeding import generator

__all__ = ["MOST_PROMPTS", "found_prompts"]

LEARNING_RATE = 0.15
BATCH_SIZE = 32
WORDS = 4
MOST_PROMPTS = 64


def _at_first(backbone: StableDiffusionBackbone, count: int, g: torch.Generator) -> list[Tensor]:
    """δ_0 for each text encoder: ``(count, k, D)``."""
    shapes = [(count, WORDS, vocabulary.shape[1]) for vocabulary in backbone.vocabularies]
    return [(0.1 * torch.randn(shape, generator=g)).to(backbone.device).requires_grad_() for shape in shapes]


def _words(backbone: StableDiffusionBackbone, delta: Sequence[Tensor]) -> list[Tensor]:
    return [v.mean(0) + v.std(0) * d for v, d in zip(backbone.vocabularies, delta, strict=True)]


def found_prompts(
    backbone: StableDiffusionBackbone,
    x_0: Tensor,
    seed: int,
    *,
    steps: int,
    precision: str = "fp32",
    gradient_checkpointing: bool = False,
) -> Tensor:
    """Numbers ``(min(N, MOST_PROMPTS),)`` in ``c`` of prompts for the first of ``x_0`` ``(N, *latent_shape)``.

    Deterministic for a seed.
    """
    x_0 = x_0[:MOST_PROMPTS]
    network = backbone.trainable_copy(gradient_checkpointing, ())
    delta = _at_first(backbone, len(x_0), generator(seed, "inversion"))
    optimizer = torch.optim.Adam(delta, lr=LEARNING_RATE)
    with backbone.placed_text(single=True):
        for step in range(steps):
            g = generator(seed, "inversion", step)
            i = torch.randint(len(x_0), (min(BATCH_SIZE, backbone.largest_batch),), generator=g)
            at = noised(backbone, Clean(x_0[i]), g)
            asked = backbone.encodings_of_words([d[i.to(d.device)] for d in _words(backbone, delta)])
            with autocast(network, precision):
                output = backbone.output_of_encodings(network, at.x_t, at.t, asked)
            loss = (output - backbone.from_eps(at.eps, at.x_t, at.t)).pow(2).mean()
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / steps)
            for d, slope in zip(delta, torch.autograd.grad(loss, delta), strict=True):
                d.grad = slope
            optimizer.step()
            backbone.passes += 3 * len(i)
        with torch.no_grad():
            return backbone.add_prompts(backbone.encodings_of_words(_words(backbone, delta)))
