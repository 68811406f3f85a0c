"""Figures of the protocol, from arrays of class indices and features; no files, no models.

PUL        100 (N_orig − N_unl) / N_orig, paired bootstrap over seeds
Fréchet    ‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a^½ Σ_b Σ_a^½)^½)            (Heusel et al., arXiv 1706.08500)
KID        unbiased MMD² with k(x, y) = (xᵀy / D + 1)³                      (Bińkowski et al., arXiv 1801.01401)
precision  share of samples inside the k-NN balls of real features; recall the other way
           (Kynkäänniemi et al., arXiv 1904.06991)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vdu.seeding import generator

__all__ = [
    "Interval",
    "class_shares",
    "frechet_distance",
    "kernel_distance",
    "paired_changes",
    "precision_recall",
    "pul",
    "share_interval",
    "total_variation",
]

BOOTSTRAP_DRAWS = 2000


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % confidence interval; None where it is not defined (nothing to forget)."""

    value: float | None
    low: float | None
    high: float | None


def _resampled_counts(flags: Tensor, seed: int) -> Tensor:
    """Bootstrap draws of joint counts of ``flags`` ``(N, M)`` bool: ``(draws, M)``, rows resampled together."""
    n, columns = flags.shape
    weights = 2 ** torch.arange(columns)
    cells = (flags.long() * weights).sum(1)
    frequency = torch.bincount(cells, minlength=2**columns).double() / n
    draws = torch.multinomial(
        frequency.expand(BOOTSTRAP_DRAWS, -1), n, replacement=True, generator=generator(seed, "bootstrap")
    )
    bits = (draws.unsqueeze(-1) // weights) % 2
    return bits.sum(1).double()


def pul(before: Tensor, after: Tensor, seed: int = 0) -> Interval:
    """Percentage of unlearning from bools ``(N,)``, same seed at the same place; interval by paired bootstrap."""
    count_before, count_after = int(before.sum()), int(after.sum())
    if count_before == 0:
        return Interval(None, None, None)
    value = 100 * (count_before - count_after) / count_before
    counts = _resampled_counts(torch.stack([before, after], dim=1), seed)
    counts = counts[counts[:, 0] > 0]
    low, high = (100 * (1 - counts[:, 1] / counts[:, 0])).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    if count_after == 0:
        # The bootstrap never sees an event that did not happen: 3/N is the 95 % bound for a count of zero.
        low = min(low, 100 * (1 - min(1.0, 3 / count_before)))
    return Interval(value, low, high)


def share_interval(flags: Tensor) -> Interval:
    """A share of ``(N,)`` bools in percent with its Wilson score interval."""
    n, z = len(flags), 1.959964
    p = float(flags.double().mean())
    centre, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    scale = 100 / (1 + z * z / n)
    # Exact at the ends, where rounding would put the bound beside the value.
    low = 0.0 if p == 0 else scale * (centre - half)
    high = 100.0 if p == 1 else scale * (centre + half)
    return Interval(100 * p, low, high)


def class_shares(predicted: Tensor, classes: int) -> list[float]:
    """Percent of samples per class and, last, of "none" (index −1)."""
    counts = torch.bincount(predicted % (classes + 1), minlength=classes + 1)
    return (100 * counts.double() / len(predicted)).tolist()


def total_variation(before: list[float], after: list[float]) -> float:
    """Half the L1 distance of two distributions (normalised here), in percent."""
    p, q = torch.tensor(before).double(), torch.tensor(after).double()
    return float(50 * (p / p.sum() - q / q.sum()).abs().sum())


def paired_changes(before: Tensor, after: Tensor, target: int) -> float:
    """Percent of the samples that were *not* of the target (nor none) and changed class, seed by seed."""
    kept = (before != target) & (before >= 0)
    return float(100 * (after[kept] != before[kept]).double().mean()) if kept.any() else float("nan")


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    x = features.double()
    return x.mean(0), torch.cov(x.T)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of the Gaussians fitted to features ``(N, D)`` and ``(M, D)``."""
    (mean_a, cov_a), (mean_b, cov_b) = _moments(a), _moments(b)
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return float((mean_a - mean_b).pow(2).sum() + cov_a.trace() + cov_b.trace() - 2 * cross)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Unbiased squared MMD with the cubic polynomial kernel (KID) of features ``(N, D)`` and ``(M, D)``."""
    a, b = a.double(), b.double()
    n, m = len(a), len(b)
    k_aa, k_bb = _kernel(a, a), _kernel(b, b)
    within_a = (k_aa.sum() - k_aa.trace()) / (n * (n - 1))
    within_b = (k_bb.sum() - k_bb.trace()) / (m * (m - 1))
    return float(within_a + within_b - 2 * _kernel(a, b).mean())


def _covered(centres: Tensor, points: Tensor, k: int) -> float:
    """Percent of ``points`` that lie in some centre's ball, whose radius is its k-th neighbour's distance."""
    radius = torch.cdist(centres, centres).kthvalue(k + 1, dim=1).values
    inside = (torch.cdist(points, centres) <= radius).any(dim=1)
    return float(100 * inside.double().mean())


def precision_recall(samples: Tensor, real: Tensor, k: int = 3) -> tuple[float, float]:
    """k-NN manifold precision and recall in percent of sample and real features."""
    n = min(len(samples), len(real))
    samples, real = samples[:n].double(), real[:n].double()
    return _covered(real, samples, k), _covered(samples, real, k)
