"""Rows of result files: what each run measured, and what follows from it.

ratio = figure / the original's     (u-FID, KID, filtered alike)
none_rise = share of no class − the original's
kept = (IRA + CRA) / 2
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vdu.errors import VduError, nearest
from vdu.records import read_record

__all__ = ["RETRAIN", "is_of_concepts", "is_of_steps", "lead_figure", "only", "read_results", "read_rows"]

RETRAIN = "retrain"  # the method of an oracle's row, see `vdu.bench.oracle`


def read_results(suite: str, results: Path) -> list[dict[str, Any]]:
    """The contents of all result files. Raises `VduError` where there is none."""
    given, suite = suite, suite.removesuffix(".toml").rpartition("/")[2]  # as `read_suite` names one of a file
    files = sorted((results / suite).glob("*.json"))
    if not files:
        made = f"cost {suite.removeprefix('cost-')}" if suite.startswith("cost-") else f"run {given}"
        raise VduError(f"no results of {suite} in {results}: make them with `vdu bench {made}`")
    return [_result(path) for path in files]


def _result(path: Path) -> dict[str, Any]:
    """One file. Raises `VduError` for one that no suite wrote."""
    content = read_record(path)
    if not isinstance(content.get("row", content.get("method")), (dict, str)):
        raise VduError(f"{path} was not written by `vdu bench`: give another --results, or move it away")
    return content


def _derived(row: dict[str, Any], oracles: dict[tuple[Any, Any], float]) -> dict[str, float | None]:
    """What follows from a row's figures: ratios of distances, points of none, mean of IRA and CRA, oracle's u-FID."""
    figures: dict[str, float | None] = {}
    if "u_fid" in row:
        figures["u_fid_oracle"] = oracles.get((row["target"], row["seed"]))
    for name in ("u_fid", "kid"):
        figure, original = row.get(name), row.get(f"{name}_original")
        if figure is not None and original is not None and original > 0:  # KID, which has no bias, may fall below
            figures[f"{name}_ratio"] = figure / original
    if row.get("share_none") is not None and row.get("share_none_before") is not None:
        figures["none_rise"] = row["share_none"] - row["share_none_before"]
    for suffix in ("", "_original"):
        ira, cra = row.get(f"ira{suffix}"), row.get(f"cra{suffix}")
        if ira is not None and cra is not None:
            figures[f"kept{suffix}"] = (ira + cra) / 2
    return figures


def _cost_ratios(row: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """Cost beside that of the method that arrives with the fewest passes on the same target, where both arrive."""
    if "ended" not in row:
        return {}
    same = [r for r in rows if (r["target"], r["seed"]) == (row["target"], row["seed"]) and r["step"] is not None]
    least = min(same, key=lambda r: r["passes"], default=row)
    return {
        f"{figure}_ratio": round(row[figure] / least[figure], 2)
        if row["step"] and row[figure] and least[figure]
        else None
        for figure in ("seconds", "passes", "memory_mb")
    }


def _given(content: dict[str, Any]) -> dict[str, Any]:
    """What a run was given: in words, and how many forget images, and checkpoints for its posterior."""
    record = content.get("unlearning")
    if record is None:
        return {"given": "data without it"} if "training" in content else {}
    posterior, retain = record.get("posterior") or {}, record.get("retain")
    of_checkpoints = posterior.get("source") == "checkpoints"
    beside = {
        "posterior": bool(posterior),
        "words": any((record.get("prompts") or {}).get("forget", ())),
        "its share": record.get("share_source") == "given",
        f"{retain['images'] if retain else 0} images to keep": bool(retain),
    }
    return {
        "given": ", ".join(["forget images", *(name for name, there in beside.items() if there)]),
        "forget_images": (record.get("forget") or {}).get("images"),
        "checkpoints": posterior["count"] if of_checkpoints else None,
    }


def read_rows(suite: str, results: Path) -> list[dict[str, Any]]:
    """Rows of all finished runs, by method, target and seed. Raises `VduError` where there is no result."""
    rows = [content.get("row", content) | _given(content) for content in read_results(suite, results)]
    oracles = {(r["target"], r["seed"]): r.get("u_fid") for r in rows if r.get("method") == RETRAIN}
    rows = [row | _derived(row, oracles) | _cost_ratios(row, rows) for row in rows]
    return sorted(rows, key=lambda r: (r.get("method", ""), str(r.get("target", "")), r.get("seed", 0)))


def is_of_concepts(rows: list[dict[str, Any]]) -> bool:
    """Whether these are rows of a text-to-image model's suite."""
    return any("ua" in row for row in rows)


def lead_figure(rows: list[dict[str, Any]]) -> str:
    """The first figure, which every finished run has."""
    return "ua" if is_of_concepts(rows) else "pul"


def is_of_steps(suite: str) -> bool:
    """Whether a suite measures single steps or costs, one row a form, not what was forgotten."""
    return suite == "step-cost" or suite.startswith(("memory-", "cost-"))


def only(rows: list[dict[str, Any]], field: str, wanted: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of some methods, targets or seeds: those measured on different ones cannot be compared.

    Raises `VduError` for a value that no row has.
    """
    known = {str(row[field]) for row in rows if field in row}
    if wanted and not known:
        raise VduError(f"these results have no {field}s: leave --{field} out")
    for value in wanted:
        if value not in known:
            raise VduError(f"no result is of the {field} {value!r}: {nearest(value, known)}")
    return [row for row in rows if str(row.get(field)) in wanted] if wanted else rows
