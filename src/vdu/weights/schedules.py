"""Schedules of the learning rate: factors that its greatest value is multiplied by, step by step.

cosine(s) = ½ (1 + cos(π s / S))                (Loshchilov & Hutter, arXiv 1608.03983)
"""

from __future__ import annotations

import math

__all__ = ["cosine_to_zero"]


def cosine_to_zero(step: int, steps: int) -> float:
    """From 1 at ``step`` 0 down to 0 at ``step`` = ``steps``."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))
