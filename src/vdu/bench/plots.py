"""Plots of a suite from its result files.

frontier   PUL against u-FID / u-FID of the original, one point a run; left and up is better
           of a text-to-image model: UA against the mean of IRA and CRA; right and up is better
cost       PUL or UA against seconds of unlearning, one point a run
classes    change of every class's share in points, one panel a method, one line a target, mean over seeds
           of a text-to-image model: of how often a class is seen where it is asked for (the target's: where it is)
amount     PUL with its interval, and the ratio of u-FIDs, against how many forget images or checkpoints a run was given
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import mean
from typing import Any

from vdu.bench.rows import RETRAIN, is_of_concepts, lead_figure, read_results, read_rows
from vdu.errors import VduError, nearest
from vdu.methods import METHODS
from vdu.output import replacing

__all__ = ["KINDS", "plot"]

# A broken model's noise may pass for the class thousands of times; a triangle stands at the edge for it.
LOWEST_DRAWN = -100
SHORT_NAME = 4  # letters that fit side by side
COLOURS, MARKERS = 10, "osD^"  # matplotlib's colours, and what follows when they are used up


def _looks(methods: set[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each, by name; a method of the package looks the same in every plot."""
    own = [*METHODS, RETRAIN]
    numbers = {name: i for i, name in enumerate([*own, *sorted(methods.difference(own))])}
    return {
        method: {
            "color": f"C{numbers[method] % COLOURS}",
            "marker": MARKERS[numbers[method] // COLOURS % len(MARKERS)],
            "alpha": 0.7,
        }
        for method in sorted(methods)
    }


def _scatter(figure: Any, suite: str, every: list[dict[str, Any]], x: str, label: str, scale: str) -> None:
    """One point a run: its first figure over ``x``. Raises `VduError` where no run has both."""
    lead = lead_figure(every)
    rows = [r for r in every if r.get(lead) is not None and r.get(x) is not None]
    if not rows:
        raise VduError(f"no run of {suite} has both {lead} and {x}: finish some with `vdu bench run {suite}`")
    axes = figure.subplots()
    for method, look in _looks({r["method"] for r in rows}).items():
        mine = [r for r in rows if r["method"] == method]
        drawn = [r for r in mine if r[lead] >= LOWEST_DRAWN]
        axes.scatter([r[x] for r in drawn], [r[lead] for r in drawn], s=22, label=method, **look)
        below = [r[x] for r in mine if r[lead] < LOWEST_DRAWN]
        axes.scatter(below, [LOWEST_DRAWN] * len(below), s=60, **look | {"marker": "v"})
    axes.axhline(100, color="grey", linewidth=0.8)
    axes.set_xscale(scale)
    axes.set_xlabel(label)
    axes.set_ylabel(f"{lead.upper()}, percent")
    axes.set_title(suite)
    figure.legend(fontsize=8, loc="outside right upper")


def _frontier(figure: Any, suite: str, results: Path) -> None:
    rows, original = read_rows(suite, results), 1.0
    if is_of_concepts(rows):
        _scatter(figure, suite, rows, "kept", "mean of IRA and CRA, percent (line: the original)", "linear")
        original = mean(r["kept_original"] for r in rows if "kept_original" in r)
    else:
        label = "u-FID / u-FID of the original, filtered (log scale)"
        _scatter(figure, suite, rows, "u_fid_ratio", label, "log")
    figure.axes[0].axvline(original, color="grey", linewidth=0.8)


def _cost(figure: Any, suite: str, results: Path) -> None:
    _scatter(figure, suite, read_rows(suite, results), "seconds", "seconds of unlearning (log scale)", "log")


def _shifts(result: dict[str, Any]) -> dict[str, float]:
    """By class, the change of its share of the samples, or of the samples that were asked for it; in points."""
    seen = result["evaluation"]
    if "class_names" in seen:
        moved = (b - a for a, b in zip(seen["shares_before"], seen["shares_after"], strict=True))
        return dict(zip([*seen["class_names"], "none"], moved, strict=True))
    names = [name for detector in seen["detectors"].values() for name in detector["class_names"]]
    before, after = (
        {name: share["value"] for shares in seen[which].values() for name, share in shares.items()}
        for which in ("by_class_original", "by_class")
    )
    before[seen["target"]], after[seen["target"]] = -seen["ua_original"]["value"], -seen["ua"]["value"]
    return {name: after[name] - before[name] if name in after else math.nan for name in names}


def _classes(figure: Any, suite: str, results: Path) -> None:
    knows = ("class_names", "by_class")
    done = [r for r in read_results(suite, results) if any(k in r.get("evaluation", ()) for k in knows)]
    targets = sorted({str(r["row"]["target"]) for r in done})
    methods = sorted({r["row"]["method"] for r in done})
    if not done:
        made = f"make some with `vdu bench run {suite}` (of text-to-image models those before 2026-11-29 did not)"
        raise VduError(f"no finished run of {suite} counts classes: {made}")
    names, reach = [*_shifts(done[0])], 12 if "class_names" in done[0]["evaluation"] else 40
    columns = min(3, len(methods))
    rows = math.ceil(len(methods) / columns)
    figure.set_size_inches(3.2 * columns + 1, 1.2 * rows + 0.25 * rows * len(targets))
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels[len(methods) :]:
        axes.axis("off")
    for method, axes in zip(methods, panels, strict=False):
        grid = []
        for target in targets:
            shifts = [_shifts(r) for r in done if (r["row"]["method"], str(r["row"]["target"])) == (method, target)]
            grid.append([mean(shift[name] for shift in shifts) if shifts else math.nan for name in names])
        image = axes.imshow(grid, cmap="RdBu", vmin=-reach, vmax=reach, aspect="auto")
        axes.set_title(method, fontsize=9)
        axes.set_xticks(range(len(names)), names, fontsize=7, rotation=90 * (max(map(len, names)) > SHORT_NAME))
        axes.set_yticks(range(len(targets)), targets, fontsize=7)
    figure.supxlabel("class", fontsize=8)
    figure.supylabel("forgotten class", fontsize=8)
    figure.colorbar(image, ax=list(panels), shrink=0.6, label="change of share, points")


AMOUNTS = {"forget_images": "forget images", "checkpoints": "checkpoints of the posterior"}


def _method_and_settings(unlearning: dict[str, Any]) -> str:
    return json.dumps([unlearning["method"], unlearning["settings"]])


def _amounts(suite: str, results: Path) -> tuple[str, list[dict[str, Any]]]:
    """What the runs were given more or less of, and the rows that were given some. Raises `VduError` for nothing."""
    done = [content for content in read_results(suite, results) if "unlearning" in content]
    arms = {content["row"]["method"]: _method_and_settings(content["unlearning"]) for content in done}
    rows = [r for r in read_rows(suite, results) if r.get("pul") is not None and r["method"] in arms]
    rows = [r | {"arm": arms[r["method"]]} for r in rows]
    for amount in AMOUNTS:
        given = [r for r in rows if r.get(amount) is not None]
        if len({r[amount] for r in given}) > 1:
            return amount, sorted(given, key=lambda r: r[amount])
    raise VduError(f"no amount plot of {suite}: its runs were all given as many {' and '.join(AMOUNTS.values())}")


def _method_names(rows: list[dict[str, Any]]) -> dict[str, str]:
    """What stands before a line's target: its method, with a label where others have it with other settings."""
    arms = dict.fromkeys(r["arm"] for r in rows)
    methods = [json.loads(arm)[0] for arm in arms]
    if len(arms) == 1:
        return dict.fromkeys(arms, "")
    label = {arm: next(str(r["method"]) for r in rows if r["arm"] == arm) for arm in arms}
    return {a: f"{m} ({label[a]}), " if methods.count(m) > 1 else f"{m}, " for a, m in zip(arms, methods, strict=True)}


def _amount(figure: Any, suite: str, results: Path) -> None:
    amount, rows = _amounts(suite, results)
    panels = figure.subplots(1, 2)
    of_method, lines = _method_names(rows), sorted({(r["arm"], str(r["target"]), r["seed"]) for r in rows})
    for arm, target, seed in lines:
        mine = [r for r in rows if (r["arm"], str(r["target"]), r["seed"]) == (arm, target, seed)]
        x, pul = [r[amount] for r in mine], [r["pul"] for r in mine]
        reach = [[r["pul"] - r["pul_low"] for r in mine], [r["pul_high"] - r["pul"] for r in mine]]
        panels[0].errorbar(x, pul, yerr=reach, marker="o", capsize=3, label=f"{of_method[arm]}{target}, seed {seed}")
        panels[1].plot(x, [r.get("u_fid_ratio") for r in mine], marker="o")
    for axes, figures in zip(panels, ("PUL, percent", "u-FID / u-FID of the original"), strict=True):
        axes.set_xscale("log")
        given = sorted({r[amount] for r in rows})
        axes.set_xticks(given, [str(number) for number in given])
        axes.set_xticks([], minor=True)
        axes.set_xlabel(f"{AMOUNTS[amount]} (log scale)")
        axes.set_ylabel(figures)
    panels[0].axhline(100, color="grey", linewidth=0.8)
    panels[1].axhline(1, color="grey", linewidth=0.8)
    figure.suptitle(suite)
    figure.legend(fontsize=8, loc="outside right upper", title="forgotten")


FORMATS = ("svg", "png", "pdf")
UNDATED: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}  # the same rows give the same file
KINDS = {"frontier": _frontier, "cost": _cost, "classes": _classes, "amount": _amount}


def plot(kind: str, suite: str, results: Path, out: Path) -> None:
    """Write a plot of ``suite`` to ``out`` (SVG, PNG or PDF by its suffix).

    Raises `VduError` for an unknown kind, and for a suite that has no such figures.
    """
    if kind not in KINDS:
        raise VduError(f"unknown plot {kind!r}: {nearest(kind, KINDS)}")
    if kind == "amount" and is_of_concepts(read_rows(suite, results)):
        raise VduError(f"no amount plot of {suite}: a text-to-image suite has no PUL; see `vdu bench show {suite}`")
    suffix = out.suffix.lstrip(".") or "svg"
    if suffix not in FORMATS:
        raise VduError(f"a plot is no {out.suffix} file: {nearest(suffix, FORMATS)}")
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "vdu"
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(8.5, 4.5), layout="constrained")
    try:
        KINDS[kind](figure, suite, results)
        with replacing(out) as beside:
            figure.savefig(beside, format=suffix, metadata=UNDATED.get(suffix, {}))
    finally:
        plt.close(figure)
