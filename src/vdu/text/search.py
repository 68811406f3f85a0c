"""How the forget images are asked for: in the words that were given, with prompts found from them, or not at all."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vdu.backbone import Backbone
from vdu.backbone.stable_diffusion import StableDiffusionBackbone
from vdu.text.asking import Asking
from vdu.text.inversion import find_prompts
from vdu.text.vocabulary import likely_asking, words_of
from vdu.weights.kept_parts import KeptParts

__all__ = ["find_asking"]


def find_asking(
    backbone: Backbone,
    x_0: Tensor,
    seed: int,
    *,
    inversion_steps: int,
    most_words: int,
    precision: str,
    gradient_checkpointing: bool,
    begin: Callable[[str], None],
    parts: KeptParts,
) -> Asking | None:
    """What asks for the forget images ``x_0`` ``(N, *latent_shape)``; None where nobody knows, or without text.

    One prompt for all that was given is taken; captions that differ are not put into other words. Where nothing was
    given, prompts are found in ``inversion_steps`` steps (0: not), and up to ``most_words`` words beside them.
    ``begin`` is told what is looked for; what is found is kept in ``parts``.
    """
    if not isinstance(backbone, StableDiffusionBackbone):
        return None
    given = set(backbone.prompts.forget) if backbone.prompts else set()
    if any(text.strip() for text in given):
        return Asking(backbone, tuple(given)) if len(given) == 1 else None
    if not inversion_steps:
        return None
    begin(f"finding prompts that ask for the forget images, {inversion_steps} steps")
    found = find_prompts(
        backbone,
        x_0,
        seed,
        steps=inversion_steps,
        precision=precision,
        gradient_checkpointing=gradient_checkpointing,
        parts=parts,
    )
    begin("looking for words that ask for them")
    words = words_of(backbone.prompts.neutral) if backbone.prompts else []

    def likely() -> dict[str, Tensor]:
        found = likely_asking(backbone, x_0, words, seed, most=most_words, precision=precision)
        return {"numbers": torch.tensor([words.index(word) for word in found], dtype=torch.long)}

    return Asking(backbone, found=found, tried=[words[i] for i in parts("words", likely)["numbers"].tolist()])
