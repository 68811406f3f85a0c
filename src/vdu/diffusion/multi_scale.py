"""The squared error of a regression, where what wide areas of a picture share counts more, up to the noise.

    ‖e‖²_σ = mean e² + Σ_s min(s, σ) mean (pool_s e)²,   s = 2, 4, 8, … until one area is the whole picture,
    σ = √((1 − ᾱ) / ᾱ): the noise as a share of the picture

``pool_s`` is the mean over areas of s × s, or smaller, down to half the side, where the picture's size asks for it.
Noise of one variance for all pixels has 1/s² of it in such a mean. ``mean e²`` counts a shift of a whole area as it
counts independent errors of equal size, though it stands s times farther out of the noise there; where there is little
else than noise it decides how bright the picture will be, and the sampler adds it up. Where σ is far below 1 the error
is nearly the plain one. The weight s is that of the multiscale loss of Hoogeboom et al., arXiv 2301.11093, which has it
at all times.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional

__all__ = ["multi_scale_error"]


def multi_scale_error(error: Tensor, sigma: Tensor) -> Tensor:
    """``(B,)`` of ``error`` ``(B, C, H, W)`` and ``sigma`` ``(B,)`` ≥ 0."""
    size = error.shape[-2:]
    total = error.pow(2).mean(dim=(1, 2, 3))
    scale = 2
    while scale < 2 * max(size):
        # As many areas as s × s needs, equal but for the last, which is the rest: 28 at s = 8 are four of 7.
        area = tuple(math.ceil(n / math.ceil(n / scale)) for n in size)
        pooled = functional.avg_pool2d(error, area, ceil_mode=True)  # the adaptive one is not deterministic on a GPU
        total = total + sigma.clamp(max=scale) * pooled.pow(2).mean(dim=(1, 2, 3))
        scale *= 2
    return total
