"""Figures of the protocol, from arrays of class indices and features; no files, no models.

PUL        100 (N_orig − N_unl) / N_orig, paired bootstrap over seeds
rise       100 (p₀₁ − p₁₀) of paired flags, p the Laplace-adjusted shares of pairs that change
           (Bonett and Price, Biometrika 99 (2012))
Fréchet    ‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a^½ Σ_b Σ_a^½)^½)            (Heusel et al., arXiv 1706.08500)
KID        unbiased MMD² with k(x, y) = (xᵀy / D + 1)³                      (Bińkowski et al., arXiv 1801.01401)
precision  share of samples inside the k-NN balls of as many real features; recall the other way
           (Kynkäänniemi et al., arXiv 1904.06991)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vdu.seeding import generator

__all__ = [
    "FEWEST_SAMPLES",
    "Features",
    "Interval",
    "class_shares",
    "frechet_distance",
    "kernel_distance",
    "paired_changes",
    "paired_rise",
    "precision_recall",
    "pul",
    "share_interval",
    "total_variation",
]

BOOTSTRAP_DRAWS = 2000
DRAWS_AT_ONCE = 100
FEWEST_SAMPLES = 100  # under it no distance between features is given
NEIGHBOURS = 3
FEW = 10  # of a count: under it, the tail of its resampled ones is too short
Z_95 = 1.959964  # of the standard normal distribution, two-sided
ROWS_AT_ONCE = 1024  # of a matrix of all pairs, which never stands in memory as a whole


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % confidence interval; None where it is not defined (nothing to forget)."""

    value: float | None
    low: float | None
    high: float | None


def _resampled_counts(flags: Tensor) -> Tensor:
    """Bootstrap draws of joint counts of ``flags`` ``(N, M)`` bool: ``(draws, M)``, rows resampled together."""
    n, columns = flags.shape
    weights = 2 ** torch.arange(columns)
    cells = (flags.long() * weights).sum(1)
    frequency = torch.bincount(cells, minlength=2**columns).double() / n
    g, counts = generator(0, "bootstrap"), []
    for part in torch.arange(BOOTSTRAP_DRAWS).split(DRAWS_AT_ONCE):
        draws = torch.multinomial(frequency.expand(len(part), -1), n, replacement=True, generator=g)
        counts.append(((draws.unsqueeze(-1) // weights) % 2).sum(1))
    return torch.cat(counts).double()


def pul(before: Tensor, after: Tensor) -> Interval:
    """Percentage of unlearning from bools ``(N,)``, same seed at the same place; interval by paired bootstrap."""
    count_before, count_after = int(before.sum()), int(after.sum())
    if count_before == 0:
        return Interval(None, None, None)
    value = 100 * (count_before - count_after) / count_before
    counts = _resampled_counts(torch.stack([before, after], dim=1))
    counts = counts[counts[:, 0] > 0]
    low, high = (100 * (1 - counts[:, 1] / counts[:, 0])).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    # The bootstrap never sees an event that did not happen: 3/N is the 95 % bound for a count of zero.
    unseen = 300 / count_before
    if not (after & ~before).any() and count_after:
        low = min(low, value - unseen)
    if count_after < FEW:  # nor enough of one that happened a few times
        low = min(low, max(100 * (1 - poisson_upper(count_after) / count_before), 0.0))
    if not (before & ~after).any():
        high = max(high, min(value + unseen, 100.0))
    return Interval(value, low, high)


def poisson_upper(count: int) -> float:
    """The upper end of the exact 95 % interval of a Poisson mean of which ``count`` were seen (two-sided; 0: 3.69)."""
    low, high = 0.0, count + 10 * (count + 1) ** 0.5
    for _ in range(60):
        middle = (low + high) / 2
        # P(X ≤ count) of the mean `middle`
        more = torch.special.gammaincc(*torch.tensor([count + 1, middle]).double()) > 0.025
        low, high = (middle, high) if more else (low, middle)
    return high


def share_interval(flags: Tensor) -> Interval:
    """A share of ``(N,)`` bools in percent with its Wilson score interval."""
    n, z = len(flags), Z_95
    p = float(flags.double().mean())
    centre, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    scale = 100 / (1 + z * z / n)
    # Exact at the ends, where rounding would put the bound beside the value.
    low = 0.0 if p == 0 else scale * (centre - half)
    high = 100.0 if p == 1 else scale * (centre + half)
    return Interval(100 * p, low, high)


def paired_rise(before: Tensor, after: Tensor) -> Interval:
    """By how many points the share of ``after`` ``(N,)`` exceeds that of ``before``, same seed at the same place."""
    n, gained, lost = len(before), int((after & ~before).sum()), int((before & ~after).sum())
    p_gained, p_lost = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    centre = p_gained - p_lost
    half = Z_95 * ((p_gained + p_lost - centre**2) / (n + 2)) ** 0.5
    return Interval(100 * (gained - lost) / n, 100 * max(centre - half, -1), 100 * min(centre + half, 1))


def class_shares(predicted: Tensor, classes: int) -> list[float]:
    """Percent of samples per class and, last, of "none" (index −1)."""
    counts = torch.bincount(predicted % (classes + 1), minlength=classes + 1)
    return (100 * counts.double() / len(predicted)).tolist()


def total_variation(before: list[float], after: list[float]) -> float | None:
    """Half the L1 distance of two distributions (normalised here), in percent; None where one of them is empty."""
    p, q = torch.tensor(before).double(), torch.tensor(after).double()
    if not p.sum() > 0 or not q.sum() > 0:
        return None
    return float(50 * (p / p.sum() - q / q.sum()).abs().sum())


def paired_changes(before: Tensor, after: Tensor, target: int) -> float | None:
    """Percent of the samples that were *not* of the target (nor none) and changed class, seed by seed.

    None where there was no such sample.
    """
    kept = (before != target) & (before >= 0)
    return float(100 * (after[kept] != before[kept]).double().mean()) if kept.any() else None


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _mean_kernel(a: Tensor, b: Tensor) -> float:
    total = sum(float(_kernel(part, b).sum()) for part in a.split(ROWS_AT_ONCE))
    return total / (len(a) * len(b))


class Features:
    """Features ``(N, D)`` in float64, and what distances need of them alone, which is computed once."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows.double()

    @staticmethod
    def of(rows: Features | Tensor) -> Features:
        """A bare tensor is used once."""
        return rows if isinstance(rows, Features) else Features(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def drawn(self, count: int) -> Features:
        """``count`` of them, always the same, and from all over them: folders come class by class."""
        if count >= len(self):
            return self
        return Features(self.rows[torch.randperm(len(self), generator=generator(0, "features"))[:count]])

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean ``(D,)`` and covariance ``(D, D)``."""
        return self.rows.mean(0), torch.cov(self.rows.T)

    @cached_property
    def mean_kernel(self) -> float:
        """KID's kernel, mean over all pairs of different rows."""
        n = len(self)
        diagonal = ((self.rows.pow(2).sum(1) / self.rows.shape[1] + 1) ** 3).sum()
        return (n * n * _mean_kernel(self.rows, self.rows) - float(diagonal)) / (n * (n - 1))

    @cached_property
    def radius(self) -> Tensor:
        """Distance ``(N,)`` of each row's third nearest neighbour."""
        parts = self.rows.split(ROWS_AT_ONCE)
        # The nearest is the row itself.
        return torch.cat([torch.cdist(part, self.rows).kthvalue(NEIGHBOURS + 1, dim=1).values for part in parts])


def frechet_distance(a: Features | Tensor, b: Features | Tensor) -> float | None:
    """Fréchet distance of the Gaussians fitted to features ``(N, D)`` and ``(M, D)``; for like N only comparable.

    None where N or M is no more than D, of which no covariance can be told.
    """
    a, b = Features.of(a), Features.of(b)
    if min(len(a), len(b)) <= a.rows.shape[1]:
        return None
    (mean_a, cov_a), (mean_b, cov_b) = a.moments, b.moments
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return float((mean_a - mean_b).pow(2).sum() + cov_a.trace() + cov_b.trace() - 2 * cross)


def kernel_distance(a: Features | Tensor, b: Features | Tensor) -> float | None:
    """Unbiased squared MMD with the cubic polynomial kernel (KID) of features ``(N, D)`` and ``(M, D)``.

    None where either is a single one.
    """
    a, b = Features.of(a), Features.of(b)
    if min(len(a), len(b)) < 2:
        return None
    return a.mean_kernel + b.mean_kernel - 2 * _mean_kernel(a.rows, b.rows)


def _covered(centres: Features, points: Features) -> float:
    """Percent of ``points`` that lie in some centre's ball, whose radius is its third nearest neighbour's distance."""
    parts = points.rows.split(ROWS_AT_ONCE)
    inside = torch.cat([(torch.cdist(part, centres.rows) <= centres.radius).any(dim=1) for part in parts])
    return float(100 * inside.double().mean())


def precision_recall(samples: Features | Tensor, real: Features | Tensor) -> tuple[float | None, float | None]:
    """k-NN manifold precision and recall (k = 3) in percent of sample and real features, as many of each.

    None where there are no more than k of either.
    """
    samples, real = Features.of(samples), Features.of(real)
    n = min(len(samples), len(real))
    if n <= NEIGHBOURS:
        return None, None
    samples, real = samples.drawn(n), real.drawn(n)
    return _covered(real, samples), _covered(samples, real)
