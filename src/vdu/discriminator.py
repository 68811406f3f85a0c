"""How much of ``x_t`` is forget set: ρ(x_t) = π p_f(x_t) / p(x_t), the posterior probability of the undesired part.

A balanced logistic discriminator of noised D_f against noised own samples has the optimum ``logit = log p_f/p``, so
``ρ = min(ρ_max, π e^logit)``. It is a small time-dependent head on what the frozen network itself knows
(`Backbone.original_with_features`): it generalises from few forget images and costs no second network.

π, the undesired share of what the model makes, is estimated without labels (`estimate_share`): the scores are
cross-fitted; with ``u`` the share of own samples above a threshold and ``q`` the share of held-out forget images above
it, every threshold bounds π by ``u / q``, and the best confident bound is taken (best-bin estimation: Garg et al.,
arXiv 2111.00980). At low noise a discriminator tells real from generated instead of content from content; at
``t / T`` in 0.3 … 0.5 that difference is drowned and the content is not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vdu.backbone import Backbone
from vdu.noising import Clean
from vdu.seeding import generator

__all__ = ["Bank", "Discriminator", "best_bin_share", "estimate_share", "feature_bank", "fit_discriminator", "fit_head"]

FEATURE_BATCH = 256
SHARE_RANGE = (0.3, 0.5)
DRAWS = 4


@dataclass(frozen=True)
class Bank:
    """Features ``(draws · N, D)`` of noised images and their times ``t / T``; draw-major order."""

    features: Tensor
    times: Tensor

    def __getitem__(self, index: Tensor) -> Bank:
        return Bank(self.features[index], self.times[index])


class Discriminator(nn.Module):
    """``logit(h, t)``: standardised features and a Fourier embedding of time through one hidden layer."""

    centre: Tensor
    spread: Tensor
    frequency: Tensor

    def __init__(self, dimensions: int, hidden: int = 128, frequencies: int = 8) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(dimensions))
        self.register_buffer("spread", torch.ones(dimensions))
        self.register_buffer("frequency", math.pi * torch.arange(1, frequencies + 1).float())
        into = dimensions + 2 * frequencies
        self.layers = nn.Sequential(
            nn.Dropout(0.2), nn.Linear(into, hidden), nn.SiLU(), nn.Dropout(0.3), nn.Linear(hidden, 1)
        )

    def standardise(self, features: Tensor) -> None:
        """Fix centre and spread from a bank ``(N, D)``."""
        self.centre.copy_(features.mean(0))
        self.spread.copy_(features.std(0) + 1e-3)

    def forward(self, features: Tensor, t_share: Tensor) -> Tensor:
        """Logits ``(B,)`` of features ``(B, D)`` at times ``t / T`` ``(B,)``."""
        angle = t_share.unsqueeze(1) * self.frequency
        h = ((features - self.centre) / self.spread).clamp(-5, 5)
        return self.layers(torch.cat([h, angle.sin(), angle.cos()], dim=1)).squeeze(1)


def feature_bank(
    backbone: Backbone,
    images: Clean,
    draws: int,
    seed: int,
    stream: str,
    t_range: tuple[float, float] = (0.0, 1.0),
    precision: str = "fp32",
) -> Bank:
    """Noise every image ``draws`` times, at times uniform in ``t_range`` · T; keep the frozen network's features."""
    clean, g = images.repeat(draws), generator(seed, "bank", stream)
    low, high = (int(edge * (backbone.timesteps - 1)) for edge in t_range)
    t = torch.randint(low, high + 1, (len(clean),), generator=g)
    x_t = backbone.add_noise(clean.x_0, torch.randn(clean.x_0.shape, generator=g), t)
    device = backbone.device
    parts = torch.arange(len(clean)).split(min(FEATURE_BATCH, backbone.largest_batch))

    def features(i: Tensor) -> Tensor:
        c = None if clean.c is None else clean.c[i]
        return backbone.original_with_features(x_t[i].to(device), t[i].to(device), c)[1]

    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        return Bank(torch.cat([features(i) for i in parts]), t.to(device) / backbone.timesteps)


def fit_head(forget: Bank, own: Bank, seed: int, steps: int = 300, batch_size: int = 256) -> Discriminator:
    """Logistic regression of forget features (label 1) against own features (label 0), classes balanced."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Discriminator(forget.features.shape[1]).to(forget.features.device)
        head.standardise(own.features)
        optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.1)
        for step in range(steps):
            g = generator(seed, "head", step)
            f = forget[torch.randint(len(forget.times), (batch_size // 2,), generator=g)]
            o = own[torch.randint(len(own.times), (batch_size // 2,), generator=g)]
            loss = nn.functional.softplus(-head(f.features, f.times)) + nn.functional.softplus(
                head(o.features, o.times)
            )
            optimizer.zero_grad(set_to_none=True)
            loss.mean().backward()
            optimizer.step()
    return head.eval().requires_grad_(False)


def fit_discriminator(
    backbone: Backbone, forget: Clean, own: Clean, seed: int, precision: str = "fp32", bank_size: int = 2000
) -> Discriminator:
    """The time-dependent discriminator on all times, from ``bank_size`` noised images of each kind."""
    banks = [
        feature_bank(backbone, images, max(1, bank_size // len(images)), seed, stream, precision=precision)
        for images, stream in ((forget, "forget"), (own, "own"))
    ]
    return fit_head(banks[0], banks[1], seed)


def best_bin_share(u_of_forget: Tensor, own_count: int, confidence: float = 0.1) -> float:
    """π from ``u`` ``(N,)``: for each held-out forget image, the share of own samples that score above it.

    Minimises the upper confidence bound of ``u / q`` over thresholds (Hoeffding slack), returns ``u / q`` there.
    """
    u = u_of_forget.double().sort().values
    n = len(u)
    q = torch.arange(1, n + 1, dtype=torch.float64) / n
    slack = math.sqrt(math.log(4 / confidence) / 2) * (1 / math.sqrt(own_count) + 1 / math.sqrt(n))
    best = int(((u + slack) / q).argmin())
    return float((u[best] / q[best]).clamp(1 / own_count, 0.9))


def _image_scores(head: Discriminator, bank: Bank) -> Tensor:
    """One score an image: the mean over its draws."""
    return head(bank.features, bank.times).view(DRAWS, -1).mean(0)


def estimate_share(
    backbone: Backbone, forget: Clean, own: Clean, seed: int, precision: str = "fp32", folds: int = 5
) -> float:
    """π̂: the undesired share of the ``own`` samples, by cross-fitting. Needs no labels.

    With fewer than five forget images a fold holds one image; a single image cannot be held out and gives 1 / M.
    """
    bank_f = feature_bank(backbone, forget, DRAWS, seed, "share-forget", SHARE_RANGE, precision)
    bank_p = feature_bank(backbone, own, DRAWS, seed, "share-own", SHARE_RANGE, precision)
    folds = min(folds, len(forget))
    if folds < 2:
        return 1 / len(own)
    fold_f, fold_p = torch.arange(len(forget)) % folds, torch.arange(len(own)) % folds
    u: list[Tensor] = []
    for fold in range(folds):
        out_f, out_p = (fold_f == fold).repeat(DRAWS), (fold_p == fold).repeat(DRAWS)
        head = fit_head(bank_f[~out_f], bank_p[~out_p], seed + fold, steps=150)
        score_f, score_p = _image_scores(head, bank_f[out_f]), _image_scores(head, bank_p[out_p])
        u.append((score_p.unsqueeze(0) > score_f.unsqueeze(1)).double().mean(1))
    return best_bin_share(torch.cat(u), len(own))
