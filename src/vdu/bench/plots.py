"""PUL against u-FID, one point a run, from result files. Left and up is better."""

from __future__ import annotations

from pathlib import Path

from vdu.bench.tables import read_rows
from vdu.checkpoint import replacing

__all__ = ["frontier"]


def frontier(suite: str, results: Path, out: Path) -> None:
    """Write the plot of ``suite`` to ``out`` (SVG or PNG by its suffix)."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "vdu"
    from matplotlib import pyplot as plt

    rows = [r for r in read_rows(suite, results) if r.get("pul") is not None and r.get("u_fid") is not None]
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for method in sorted({r["method"] for r in rows}):
        mine = [r for r in rows if r["method"] == method]
        ratio = [r["u_fid"] / r["u_fid_original"] for r in mine]
        axes.scatter(ratio, [r["pul"] for r in mine], s=22, alpha=0.7, label=method)
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.axhline(100, color="grey", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("u-FID / u-FID of the original, filtered (log scale)")
    axes.set_ylabel("PUL, percent")
    axes.set_title(suite)
    axes.legend(fontsize=8)
    suffix = out.suffix.lstrip(".") or "svg"
    with replacing(out) as beside:
        figure.savefig(beside, format=suffix, metadata={"Date": None} if suffix == "svg" else {})
    plt.close(figure)
