"""A curve over training steps, as coordinates for a template to draw in SVG.

x = left + (right − left) (s − s_first) / (s_last − s_first),  y likewise between the outer ticks, upwards
"""

from __future__ import annotations

import math
from typing import Any

__all__ = ["curve"]

TICKS = 4
FRAME = {"width": 360, "height": 210, "left": 46, "right": 350, "top": 22, "bottom": 172}


def _ticks(low: float, high: float) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten) that reach from at most ``low`` to at least ``high``."""
    rough = (high - low or abs(high)) / TICKS or 1.0
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = 12 - math.floor(math.log10(step))
    return [round(i * step, digits) for i in range(first, max(last, first + 1) + 1)]


def curve(title: str, points: list[tuple[int, Any, bool]], best: int, zero: bool = False) -> dict[str, Any] | None:
    """Coordinates of a curve of (step, value, broken) for the template to draw; None under two points."""
    known = [(step, y, broken) for step, y, broken in points if y is not None and math.isfinite(y)]
    if len(known) < 2:
        return None
    known = known[:: max(1, len(known) // 300)] + known[-1:]
    xs, ys = [p[0] for p in known], [p[1] for p in known]
    x_ticks = [x for x in _ticks(min(xs), max(xs)) if min(xs) <= x <= max(xs)]
    y_ticks = _ticks(min([0.0] if zero else ys), max(ys))
    c = FRAME

    def across(x: float) -> float:
        return round(c["left"] + (c["right"] - c["left"]) * (x - min(xs)) / (max(xs) - min(xs) or 1), 1)

    def up(y: float) -> float:
        return round(c["bottom"] - (c["bottom"] - c["top"]) * (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0] or 1), 1)

    dots = [(across(x), up(y), broken) for x, y, broken in known]
    return {
        **c,
        "title": title,
        "line": " ".join(f"{x},{y}" for x, y, _ in dots),
        "dots": dots if len(dots) <= 60 else [d for d in dots if d[2]],
        "x_ticks": [(across(x), f"{x:g}") for x in x_ticks],
        "y_ticks": [(up(y), f"{y:g}") for y in y_ticks],
        "best": (across(best), best) if min(xs) <= best <= max(xs) else None,
    }
