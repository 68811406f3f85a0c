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
from vdu.diffusion.noising import Clean, noised
from vdu.precision import autocast
from vdu.seeding import generator
from vdu.weights.kept_parts import KeptParts

__all__ = ["MOST_PROMPTS", "find_prompts"]

LEARNING_RATE = 0.15
BATCH_SIZE = 32
WORDS = 4
MOST_PROMPTS = 64


def _scale(backbone: StableDiffusionBackbone) -> list[tuple[Tensor, Tensor]]:
    """m and s ``(D,)`` of each text encoder."""
    return [(vocabulary.mean(0), vocabulary.std(0)) for vocabulary in backbone.vocabularies]


def _words(scale: Sequence[tuple[Tensor, Tensor]], delta: Sequence[Tensor]) -> list[Tensor]:
    return [m + s * d for (m, s), d in zip(scale, delta, strict=True)]


def find_prompts(
    backbone: StableDiffusionBackbone,
    x_0: Tensor,
    seed: int,
    *,
    steps: int,
    precision: str = "fp32",
    gradient_checkpointing: bool = False,
    parts: KeptParts | None = None,
) -> Tensor:
    """Numbers ``(min(N, MOST_PROMPTS),)`` in ``c`` of prompts for the first of ``x_0`` ``(N, *latent_shape)``.

    Each step is one on ``BATCH_SIZE`` of the images, which share the steps. Deterministic for a seed. ``parts``: where
    they are kept.
    """

    def find() -> dict[str, Tensor]:
        encodings = _fitted(backbone, x_0[:MOST_PROMPTS], seed, steps, precision, gradient_checkpointing)
        return {str(kind): encoding for kind, encoding in enumerate(encodings)}

    found = (parts or KeptParts())("prompts", find)
    return backbone.add_prompts(tuple(found[str(kind)] for kind in range(len(found))))


def _fitted(
    backbone: StableDiffusionBackbone,
    x_0: Tensor,
    seed: int,
    steps: int,
    precision: str,
    gradient_checkpointing: bool,
) -> tuple[Tensor, ...]:
    """What the text encoders make of a prompt ``(N, …)`` for each of ``x_0``."""
    device = backbone.device
    network = backbone.trainable_copy(gradient_checkpointing, ())
    with backbone.placed_text(single=True):
        scale, g = _scale(backbone), generator(seed, "inversion")
        start = [0.1 * torch.randn(len(x_0), WORDS, len(m), generator=g) for m, _ in scale]
        delta = [d.to(device).requires_grad_() for d in start]
        optimizer = torch.optim.Adam(delta, lr=LEARNING_RATE)
        for step in range(steps):
            g = generator(seed, "inversion", step)
            i = torch.randint(len(x_0), (BATCH_SIZE,), generator=g)
            at = noised(backbone, Clean(x_0[i]), g)
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / steps)
            optimizer.zero_grad()
            for part in torch.arange(BATCH_SIZE).split(backbone.largest_batch):
                x_t, t = at.x_t[part], at.t[part]
                asked = backbone.encodings_of_words(_words(scale, [d[i[part].to(device)] for d in delta]))
                with autocast(network, precision):
                    output = backbone.output_of_encodings(network, x_t, t, asked)
                error = (output - backbone.from_eps(at.eps[part], x_t, t)).pow(2).mean()
                _add_slopes(delta, error * (len(part) / BATCH_SIZE))
            optimizer.step()
            backbone.passes += 3 * BATCH_SIZE
        with torch.no_grad():
            return backbone.encodings_of_words(_words(scale, delta))


def _add_slopes(delta: Sequence[Tensor], error: Tensor) -> None:
    """As ``backward``, but nothing reaches the text encoders' own weights, which may require gradients."""
    for d, slope in zip(delta, torch.autograd.grad(error, delta), strict=True):
        d.grad = slope if d.grad is None else d.grad + slope
