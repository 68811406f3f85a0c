"""Which own samples are of the undesired kind: c(x_0) = P(undesired | x_0), by expectation–maximisation, no labels.

    first     heads tell forget images from own samples; π by best-bin estimation; an E-step
    M-step    a head regresses c on own samples, with the forget images as certain positives of as much mass again
    E-step    c = σ((score − a)/τ); the score is the mean logit over the draws of an image, from heads that have not
              seen that image

a and τ follow from two identities, which ``p c = π p_f`` says of the true c whatever the densities are:

    E_p c = π        E_p c² = π E_f c

Left at τ = 1, c is as soft as the labels and the noise that heads learn from leave it: undesired samples have too
little of it and their neighbours too much.

Where some own samples were asked for with what brings the undesired (``sought``, `vdu.text.asking`), the first heads
are an M-step with c = 0.8 for those and 0 for the rest: what they tell apart is generated on both sides then. π, its
bound and both identities are those of the others. The sought ones follow by their scores: their bound would hang on how
real the model's pictures look (of faces, 0.16 to 0.33 where 0.80 show one). A sample made of a prompt that was found
from one forget image is held out together with it: it shows the same things, and a head that has learned them from it
would rank that image too high and find π too small (of Noto 0.08, held out together 0.21, where a judge sees 0.21).

Own samples of the undesired kind count as negatives at first; a few rounds correct that. π stays what it was at first:
left to itself it shrinks to nothing or grows, by how sharp c is. Only ``t / T < ½`` is used:
above, noise hides what an image shows. Each image's score is a mean over several times, as at low noise a head tells
real from generated instead of content from content; a dozen of them rank own samples far better than three.

Best-bin estimation (Garg et al., arXiv 2111.00980): with ``u`` the share of own samples above a threshold and ``q`` the
share of held-out forget images above it, every threshold bounds π by ``u / q``; the best confident bound is taken. It
hangs on the few forget images that score lowest, so π is the mean of the bounds of several sets of first heads.
Latent labels with certain positives: Elkan & Noto, KDD 2008.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean

import torch
from torch import Tensor

from vdu.diffusion.noised_bank import NoisedBank
from vdu.preparation.discriminator import fit_head

__all__ = ["EARLY", "best_bin_share", "responsibilities"]

FOLDS = 4
GOLDEN = (5**0.5 - 1) / 2
ROUNDS = 3
BOUNDS = 3
EARLY = 0.5
DOUBT = 0.1  # with which the bound of the share may be wrong
STEPS = 150
BATCH_SIZE = 128
SOUGHT_AT_FIRST = 0.8
TEMPERATURES = (0.1, 2.0)
LARGEST_SHIFT = 40.0  # σ(−40) is nothing
HALVINGS = 40


def best_bin_share(u_of_forget: Tensor, own_count: int) -> float:
    """π from ``u`` ``(N,)``: for each held-out forget image, the share of own samples that score above it.

    Minimises the upper confidence bound of ``u / q`` over thresholds (Hoeffding slack), returns ``u / q`` there.
    """
    u = u_of_forget.double().sort().values
    n = len(u)
    q = torch.arange(1, n + 1, dtype=torch.float64) / n
    slack = math.sqrt(math.log(4 / DOUBT) / 2) * (1 / math.sqrt(own_count) + 1 / math.sqrt(n))
    best = int(((u + slack) / q).argmin())
    return float((u[best] / q[best]).clamp(1 / own_count, 0.9))


def _items(bank: NoisedBank, chosen: Tensor) -> Tensor:
    """Indices of the early items of the chosen images ``(N,)`` bool."""
    return chosen.repeat(bank.earliest(EARLY) // bank.images).nonzero().flatten()


def _folds(images: int, sought: Tensor | None, made_of: Tensor | None = None) -> Tensor:
    """The fold ``(M,)`` of each own sample: that of the forget image it is ``made_of`` (−1: of none), else by turns.

    The sought ones, which come by turns, are spread over all; those with words that take turns, in no step with these.
    """
    fold = torch.arange(images) % FOLDS
    if sought is not None:
        for group in (sought, ~sought):
            fold[group] = torch.arange(int(group.sum())) % FOLDS
    if sought is not None and made_of is not None:
        tried = sought & (made_of < 0)
        fold[tried] = (torch.arange(int(tried.sum())) * GOLDEN % 1 * FOLDS).long()
        fold = torch.where(made_of < 0, fold, made_of % FOLDS)
    return fold


def _held_out_scores(
    forget: NoisedBank, own: NoisedBank, labels: Tensor | None, seed: int, fold_o: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean logits of the forget images ``(N,)`` and the own samples ``(M,)``, each from a head that has not seen it.

    ``fold_o`` ``(M,)``: the fold of each own sample. A single forget image cannot be held out: give its share.
    """
    folds_f = min(FOLDS, forget.images)
    fold_f = torch.arange(forget.images) % folds_f
    score_f, score_o = torch.zeros(forget.images), torch.zeros(own.images)
    for fold in range(FOLDS):
        out_f, out_o = fold_f == fold, fold_o == fold
        seen = ~out_f if folds_f > 1 else torch.ones_like(out_f)
        items = {"forget_items": _items(forget, seen), "own_items": _items(own, ~out_o)}
        head = fit_head(forget, own, labels, seed + fold, **items, mass=1.0, steps=STEPS, batch_size=BATCH_SIZE)
        for bank, out, scores in ((forget, out_f, score_f), (own, out_o, score_o)):
            if out.any():
                i = _items(bank, out)
                scores[out] = head(bank.features[i], bank.t_share[i]).view(-1, int(out.sum())).mean(0).cpu()
    return score_f, score_o


def _estimated_share(score_f: Tensor, score_o: Tensor) -> float:
    """The bound on π that the scores of held-out forget images ``(N,)`` and of own samples ``(M,)`` give."""
    return best_bin_share((score_o.unsqueeze(0) > score_f.unsqueeze(1)).double().mean(1), len(score_o))


def _crossing(low: float, high: float, is_below: Callable[[float], bool]) -> float:
    """Where ``is_below`` turns from true to false between ``low`` and ``high``, by bisection."""
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return high


def _levelled(scores: Tensor, share: float, counted: Tensor) -> Tensor:
    """``score − a`` ``(M,)`` with the a at which the mean of σ over the ``counted`` ``(M,)`` is ``share``."""
    low, high = float(scores.min()) - LARGEST_SHIFT, float(scores.max()) + LARGEST_SHIFT
    return scores - _crossing(low, high, lambda a: float((scores[counted] - a).sigmoid().mean()) > share)


def _calibrated(score_f: Tensor, score_o: Tensor, share: float, counted: Tensor) -> Tensor:
    """c ``(M,)``: the level and the temperature of the scores at which both identities hold over the ``counted``."""
    scores = torch.cat([score_o, score_f]).double()
    counts = torch.cat([counted, torch.zeros(len(score_f), dtype=torch.bool)])

    def c_at(log_tau: float) -> Tensor:
        return _levelled(scores / math.exp(log_tau), share, counts).sigmoid()

    def is_too_sharp(log_tau: float) -> bool:
        c = c_at(log_tau)
        return float(c[counts].square().mean()) > share * float(c[len(score_o) :].mean())

    low, high = (math.log(tau) for tau in TEMPERATURES)
    return c_at(_crossing(low, high, is_too_sharp))[: len(score_o)].float()


def responsibilities(
    forget: NoisedBank,
    own: NoisedBank,
    seed: int,
    share: float | None = None,
    sought: Tensor | None = None,
    made_of: Tensor | None = None,
) -> Tensor:
    """c ``(M,)`` in 0 … 1 of the own samples; its mean over those not ``sought`` ``(M,)`` is π.

    ``sought``: which of them were asked for with what brings the undesired, not all; ``made_of`` ``(M,)``: the number
    of the forget image whose prompt was found and used, or −1. ``share`` is π, where it is known.
    """
    labels = None if sought is None else SOUGHT_AT_FIRST * sought.float()
    others = torch.ones(own.images, dtype=torch.bool) if sought is None else ~sought
    # A single forget image cannot be held out, and its samples need not be.
    folds = _folds(own.images, sought, made_of if forget.images > 1 else None)
    for _ in range(ROUNDS):
        score_f, score_o = _held_out_scores(forget, own, labels, seed, folds)
        if share is None:
            again = [_held_out_scores(forget, own, labels, seed + FOLDS * k, folds) for k in range(1, BOUNDS)]
            share = fmean(_estimated_share(f, o[others]) for f, o in [(score_f, score_o), *again])
        labels = _calibrated(score_f, score_o, share, others)
    assert labels is not None
    return labels
