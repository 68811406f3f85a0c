"""How much of ``x_t`` is undesired: ρ(x_t) = π p_f(x_t) / p(x_t), regressed on the network's features.

With ``c(x_0)`` the probability that an own sample is of the undesired kind (`vdu.preparation.responsibility`),

    ρ(x_t) = E[c(x_0) | x_t]

is the regression of c on x_t over the model's own samples, so that E ρ = π at every time. Half of the positives' mass
comes from the forget images: they show what own samples show too rarely. Where no c is known yet,
forget images are told from own samples with equal weights, and ``logit = log p_f / p``. With prompts, ρ(x_t, c) is the
same regression on features that know the prompt, over own samples that were made of it: nobody knows what would have
been typed for a forget image.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, dropout, softplus

from vdu.diffusion.noised_bank import NoisedBank
from vdu.seeding import generator

__all__ = ["Discriminator", "fit_head", "fit_prompted_head"]

LEARNING_RATE = 1e-3
STEPS = 400
HIDDEN, FREQUENCIES = 128, 8
BATCH_SIZE = 256
LEFT_OUT = 0.2


class Discriminator(nn.Module):
    """``logit(h, t)``: standardised features and a Fourier embedding of time through one hidden layer.

    In training a part of the features is left out for a whole batch: as good as for each item apart, at half the time.
    """

    centre: Tensor
    spread: Tensor
    frequency: Tensor

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(dimensions))
        self.register_buffer("spread", torch.ones(dimensions))
        self.register_buffer("frequency", math.pi * torch.arange(1, FREQUENCIES + 1).float())
        into = dimensions + 2 * FREQUENCIES
        self.layers = nn.Sequential(nn.Linear(into, HIDDEN), nn.SiLU(), nn.Dropout(0.3), nn.Linear(HIDDEN, 1))

    def standardise(self, features: Tensor) -> None:
        """Fix centre and spread from features ``(N, D)``."""
        self.centre.copy_(features.mean(0))
        self.spread.copy_(features.std(0) + 1e-3)

    def forward(self, features: Tensor, t_share: Tensor) -> Tensor:
        """Logits ``(B,)`` of features ``(B, D)`` at times ``t / T`` ``(B,)``."""
        angle = t_share.unsqueeze(1) * self.frequency
        h = ((features - self.centre) / self.spread).clamp(-5, 5)
        inputs = torch.cat([h, angle.sin(), angle.cos()], dim=1)
        kept = dropout(inputs.new_ones(inputs.shape[1]), LEFT_OUT, self.training)
        return self.layers(inputs * kept).squeeze(1)


def fit_head(
    forget: NoisedBank,
    own: NoisedBank,
    labels: Tensor | None,
    seed: int,
    *,
    forget_items: Tensor | None = None,
    own_items: Tensor | None = None,
    mass: float = 0.5,
    steps: int = STEPS,
    batch_size: int = BATCH_SIZE,
) -> Discriminator:
    """Regress ``labels`` c ``(M,)`` of the own samples, or tell forget from own where ``labels`` is None.

    The positives are the forget images, with a weight of ``mass`` π in all, and the own samples' c times ``mass``.
    ``forget_items`` and ``own_items`` choose items of the banks (indices); all of them by default.
    """
    device = own.features.device
    f = torch.arange(len(forget.t)) if forget_items is None else forget_items
    o = torch.arange(len(own.t)) if own_items is None else own_items
    c = torch.zeros(len(own.t)) if labels is None else labels.cpu().repeat(own.draws)
    forget_mass = 1.0 if labels is None else mass * float(labels.mean())

    def loss(head: Discriminator, g: torch.Generator) -> Tensor:
        i = f[torch.randint(len(f), (batch_size // 2,), generator=g)]
        j = o[torch.randint(len(o), (batch_size,), generator=g)]
        undesired = softplus(-head(forget.features[i], forget.t_share[i])).mean()
        logit, y = head(own.features[j], own.t_share[j]), c[j].to(device)
        return forget_mass * undesired + (mass * y * softplus(-logit) + (1 - y) * softplus(logit)).mean()

    return _fitted(own.features, loss, seed, steps)


def fit_prompted_head(own: NoisedBank, labels: Tensor, seed: int, left_out: Tensor | None = None) -> Discriminator:
    """Regress ``labels`` c ``(M,)`` of the own samples on features that know the prompt.

    Without those ``left_out`` ``(M,)``: they were made of another prompt than the one that their features know.
    """
    c = labels.to(own.features.device).repeat(own.draws)
    asked = torch.ones(own.images, dtype=torch.bool) if left_out is None else ~left_out
    items = asked.repeat(own.draws).nonzero().flatten()

    def loss(head: Discriminator, g: torch.Generator) -> Tensor:
        j = items[torch.randint(len(items), (BATCH_SIZE,), generator=g)]
        return binary_cross_entropy_with_logits(head(own.prompted_features[j], own.t_share[j]), c[j])

    return _fitted(own.prompted_features, loss, seed, STEPS)


def _fitted(
    features: Tensor, loss_of: Callable[[Discriminator, torch.Generator], Tensor], seed: int, steps: int
) -> Discriminator:
    """A head after ``steps`` of AdamW with a rate that falls to zero; ``features`` set its standardisation."""
    device = features.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        head = Discriminator(features.shape[1]).to(device)
        head.standardise(features)
        optimizer = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
        for step in range(steps):
            loss = loss_of(head, generator(seed, "head", step))
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / steps)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return head.eval().requires_grad_(False)
