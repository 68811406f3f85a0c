"""An evaluation's figures as text: rounded, with their intervals; what was not measured is never printed as zero."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

__all__ = [
    "NOT_MEASURED",
    "Cell",
    "few_samples",
    "figure_rows",
    "finite",
    "interval_of",
    "number",
    "percent",
    "percent_of",
    "value_of",
]

NOT_MEASURED = "not measured"
SAMPLES_PER_DIMENSION = 10  # under it u-FID is mostly the bias of few samples


class Cell(NamedTuple):
    """One figure and, where there is one, its 95 % interval."""

    value: str
    interval: str = ""


class Row(NamedTuple):
    """A figure of the original and of the unlearned model."""

    label: str
    before: Cell
    after: Cell


ABSENT = Cell("–")


def finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def number(value: Any, digits: int = 1) -> str:
    """Rounded, but a small figure never becomes 0, nor one under 100 becomes 100. None and NaN: "not measured"."""
    figure = finite(value)
    if figure is None:
        return NOT_MEASURED
    text = f"{figure:.{digits}f}"
    if float(text) == 0:
        return f"{figure:.1g}" if figure else f"{0:.{digits}f}"
    return f"{figure:.{digits + 2}f}" if float(text) == 100 != figure else text


def percent(value: Any) -> str:
    """`number` with its sign; ``value`` is in percent already."""
    return NOT_MEASURED if finite(value) is None else f"{number(value)} %"


def interval_of(interval: dict[str, Any] | None) -> str:
    low, high = (finite((interval or {}).get(edge)) for edge in ("low", "high"))
    return "" if low is None or high is None else f"{number(low)} to {number(high)}"


def _estimate(interval: dict[str, Any] | None) -> Cell:
    return Cell(percent((interval or {}).get("value")), interval_of(interval))


def percent_of(fraction: Any) -> str:
    return NOT_MEASURED if finite(fraction) is None else percent(100 * fraction)


def value_of(evaluation: dict[str, Any], name: str) -> float | None:
    return finite((evaluation.get(name) or {}).get("value"))


def few_samples(evaluation: dict[str, Any]) -> str:
    """What u-FID is made of where that is little for its dimensions; empty where it is enough."""
    count, dimensions = evaluation.get("u_fid_samples"), (evaluation.get("extractor") or {}).get("dimensions")
    if count is None or dimensions is None or evaluation.get("u_fid") is None:
        return ""
    if count >= SAMPLES_PER_DIMENSION * dimensions:
        return ""
    return f"only {count} samples for {dimensions} features"


def _became(counts: dict[str, int] | None) -> str:
    """Of the original's pictures of the class; "none" only where a detector can say so."""
    if counts is None:
        return NOT_MEASURED
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def figure_rows(evaluation: dict[str, Any]) -> list[Row]:
    """The figures table: label, original, unlearned."""
    e, name = evaluation, f"class {evaluation['target']}"
    counts = [Cell(str(e.get(key, NOT_MEASURED))) for key in ("count_before", "count_after")]
    rise = e.get("share_none_rise") or {}
    u_fid = f"u-FID (rough: {e['u_fid_samples']} samples)" if few_samples(e) else "u-FID"
    rows = [
        Row(f"Share of {name}", _estimate(e.get("share_before")), _estimate(e.get("share_after"))),
        Row(f"Pictures of {name}, of {e['samples']}", *counts),
        Row("What these became", ABSENT, Cell(_became(e.get("became")))),
        Row("Share of retained classes", _estimate(e.get("share_retained_before")), _estimate(e.get("share_retained"))),
        Row("Share of none", _estimate(e.get("share_none_before")), _estimate(e.get("share_none"))),
        Row("Change of that, in points", ABSENT, Cell(number(rise.get("value")), interval_of(rise))),
        Row("PUL", ABSENT, _estimate(e.get("pul"))),
        Row(u_fid, Cell(number(e.get("u_fid_original"), 2)), Cell(number(e.get("u_fid"), 2))),
    ]
    if e.get("u_fid_oracle") is not None:
        rows.append(Row("u-FID of the oracle", ABSENT, Cell(number(e["u_fid_oracle"], 2))))
    rows.append(Row("KID", Cell(number(e.get("kid_original"), 4)), Cell(number(e.get("kid"), 4))))
    for key in ("precision", "recall"):
        rows.append(Row(key.capitalize(), Cell(percent(e.get(f"{key}_original"))), Cell(percent(e.get(key)))))
    rows.append(Row("Total variation", ABSENT, Cell(percent(e.get("total_variation")))))
    rows.append(Row("Changed pairs", ABSENT, Cell(percent(e.get("changed")))))
    return rows
