"""The score of the forget set, ε_f: a copy of the network that is briefly fine-tuned on D_f.

    min E_{x ~ D_f, t, ε} ‖y − f_θ(x_t, t, ∅)‖²,  few steps from θ*, Adam with a cosine to zero, at the times it is used

Without prompts, also where the images have captions: ε_f stands beside what the model makes unasked.
Few steps: enough to move towards what the images share, too few to learn them by heart. Of a large network it may be a
LoRA beside the original's weights (`vdu.backbone.low_rank`) in place of a whole copy.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vdu.backbone import Backbone
from vdu.diffusion.denoising import Denoising
from vdu.diffusion.noising import Clean
from vdu.precision import autocast
from vdu.seeding import generator
from vdu.weights.gradients import descend, trained
from vdu.weights.kept_parts import KeptParts
from vdu.weights.parameters import LORA, trained_copy
from vdu.weights.schedules import cosine_to_zero

__all__ = ["fit_forget_score"]

BATCH_SIZE = 32
LEARNING_RATE = 3e-4
LORA_LEARNING_RATE = 1e-3  # a LoRA is customarily trained at several times the rate of whole weights; not measured here


def fit_forget_score(
    backbone: Backbone,
    forget: Clean,
    seed: int,
    *,
    steps: int,
    until: float = 1.0,
    precision: str = "fp32",
    lora_rank: int | None = None,
    gradient_checkpointing: bool = False,
    parts: KeptParts | None = None,
) -> nn.Module:
    """A frozen network whose output on ``x_t``, ``t / T`` < ``until``, is the forget set's. Deterministic for a seed.

    With a ``lora_rank`` a LoRA of that rank is trained, else everything. ``parts``: where it is kept.
    """
    network = trained_copy(backbone, LORA if lora_rank else "*", lora_rank or 0, seed, gradient_checkpointing)
    learning_rate = LORA_LEARNING_RATE if lora_rank else LEARNING_RATE
    unasked, batch_size = Denoising(backbone, Clean(forget.x_0), until), min(BATCH_SIZE, backbone.largest_batch)

    def fit() -> dict[str, Tensor]:
        optimizer = torch.optim.Adam(trained(network), lr=learning_rate)
        for step in range(steps):
            with autocast(network, precision):
                loss = unasked(network, batch_size, generator(seed, "forget-score", step))
            optimizer.param_groups[0]["lr"] = learning_rate * cosine_to_zero(step, steps)
            descend(optimizer, loss)
        return {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}

    network.load_state_dict((parts or KeptParts())(f"forget-score-{until:g}", fit), strict=False)
    return network.eval().requires_grad_(False)
