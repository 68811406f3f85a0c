"""Replay: the model's own samples stand in for the data to keep, without those that look like the forget set.

    {x ~ own samples : ρ(x) ≤ ½}       the label-free judge's verdict at low noise

Deep generative replay (Shin et al., arXiv 1705.08690) draws the other classes by their labels; an unconditional model
cannot be asked for them, so the discriminator picks them out.
"""

from __future__ import annotations

from vdu.diffusion.noising import Clean
from vdu.preparation.judge import label_free_judge
from vdu.preparation.preparation import Preparation

__all__ = ["replayed_samples"]


def replayed_samples(preparation: Preparation) -> Clean:
    """Own samples that are not judged undesired; all of them where none would be left."""
    undesired, _ = label_free_judge(preparation)(preparation.own_samples.x_0)
    kept = preparation.own_samples[~undesired.cpu()]
    return kept if len(kept) else preparation.own_samples
