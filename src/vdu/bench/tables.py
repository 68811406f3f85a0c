"""Tables from result files: every row as JSON, or the mean and range of each method as text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from vdu.errors import VduError, nearest
from vdu.records import read_record

__all__ = ["RETRAIN", "is_of_concepts", "lead_figure", "read_results", "read_rows", "render", "summary"]

NOT_MEASURED = "–"
RETRAIN = "retrain"  # the method of an oracle's row, see `vdu.bench.oracle`

CLASS_COLUMNS = (
    *("pul", "share_after", "share_none", "none_rise", "u_fid", "u_fid_original", "u_fid_oracle", "u_fid_ratio"),
    *("kid_ratio", "total_variation", "changed", "passes", "seconds"),
)
BOTH = ("ua", "ua_none", "ua_paraphrase", "ira", "cra", "cra_target")  # which the original model has too
ATTACKED = ("ua_attack", "ua_attack_original", "ua_random")  # the original under the words found for each run
CONCEPT_COLUMNS = (*BOTH[:3], *ATTACKED, *BOTH[3:], "fid_to_original", "passes", "seconds")


def read_results(suite: str, results: Path) -> list[dict[str, Any]]:
    """The contents of all result files. Raises `VduError` where there is none."""
    suite = suite.removesuffix(".toml").rpartition("/")[2]  # as `read_suite` names one of a file
    files = sorted((results / suite).glob("*.json"))
    if not files:
        made = f"cost {suite.removeprefix('cost-')}" if suite.startswith("cost-") else f"run {suite}"
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


def _given(content: dict[str, Any]) -> dict[str, int | None]:
    """How many forget images, and checkpoints for its posterior, a run had."""
    record = content.get("unlearning")
    if record is None:
        return {}
    posterior = record.get("posterior") or {}
    of_checkpoints = posterior.get("source") == "checkpoints"
    return {
        "forget_images": (record.get("forget") or {}).get("images"),
        "checkpoints": posterior["count"] if of_checkpoints else None,
    }


def read_rows(suite: str, results: Path) -> list[dict[str, Any]]:
    """Rows of all finished runs, by method, target and seed. Raises `VduError` where there is no result."""
    rows = [content.get("row", content) | _given(content) for content in read_results(suite, results)]
    oracles = {(r["target"], r["seed"]): r["u_fid"] for r in rows if r.get("method") == RETRAIN}
    rows = [row | _derived(row, oracles) | _cost_ratios(row, rows) for row in rows]
    return sorted(rows, key=lambda r: (r.get("method", ""), str(r.get("target", "")), r.get("seed", 0)))


def _decimals(figure: str) -> int:
    """Two for a distance, none for what is counted in hundreds, one for percent."""
    return 2 if "fid" in figure or "kid" in figure else 0 if figure in ("passes", "seconds") else 1


def _cell(rows: Iterable[dict[str, Any]], figure: str) -> str:
    """Mean (least … most), and of how many where some runs did not measure it; a dash where none did."""
    every = [row.get(figure) for row in rows]
    numbers = [v for v in every if v is not None]
    if not numbers:
        return NOT_MEASURED
    average, least, most = (f"{v:.{_decimals(figure)}f}" for v in (mean(numbers), min(numbers), max(numbers)))
    ends = f" ({least} … {most})" if len(numbers) > 1 else ""
    some = f", {len(numbers)} of {len(every)}" if len(numbers) < len(every) else ""
    return f"{average}{ends}{some}"


def _plain(value: object) -> str:
    return NOT_MEASURED if value is None else str(value)


def is_of_concepts(rows: list[dict[str, Any]]) -> bool:
    """Whether these are rows of a text-to-image model's suite."""
    return any("ua" in row for row in rows)


def lead_figure(rows: list[dict[str, Any]]) -> str:
    """The first figure, which every finished run has."""
    return "ua" if is_of_concepts(rows) else "pul"


def _columns(rows: list[dict[str, Any]], wanted: Sequence[str]) -> Sequence[str]:
    known = CONCEPT_COLUMNS if is_of_concepts(rows) else CLASS_COLUMNS
    for column in wanted:
        if column not in known:
            raise VduError(f"there is no column {column!r}: {nearest(column, known)}")
    return wanted or known


def summary(rows: list[dict[str, Any]], wanted: Sequence[str] = ()) -> list[list[str]]:
    """Header and one line for each method: runs, mean (least … most) of each figure, or of the ``wanted`` ones.

    In a suite of concepts the original model is the first line, over the same targets and seeds. Raises `VduError` for
    a figure that there is not.
    """
    lead, columns = lead_figure(rows), _columns(rows, wanted)
    lines = [["method", "runs", *columns]]
    if is_of_concepts(rows):
        # Rows of another machine or commit have another original: each is counted once.
        once = {(r["target"], *(r.get(f"{c}_original") for c in BOTH)): r for r in rows if lead in r}.values()
        originals = [{c: r[f"{c}_original"] for c in BOTH} for r in once]
        cells = [_cell(originals, c) for c in columns]
        lines.append(["(original)", NOT_MEASURED, *cells])
    for method in sorted({r["method"] for r in rows}):
        mine = [r for r in rows if r["method"] == method and lead in r]
        lines.append([method, str(len(mine)), *(_cell(mine, column) for column in columns)])
    return lines


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rule = ["-" * width for width in widths]
    shown = [lines[0], rule, *lines[1:]]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in shown)


def _by_target(rows: list[dict[str, Any]], figure: str) -> list[list[str]]:
    """A figure of each method (columns) on each target (lines), mean (least … most) over seeds."""
    methods = sorted({r["method"] for r in rows})
    lines = [[f"{figure} of target", *methods]]
    for target in sorted({str(r["target"]) for r in rows}):
        of_target = [r for r in rows if str(r["target"]) == target]
        cells = [_cell([r for r in of_target if r["method"] == method], figure) for method in methods]
        lines.append([target, *cells])
    return lines


def _original_shares(suite: str, results: Path) -> list[list[str]]:
    """What the original model makes, by which a PUL is to be judged: percent of its samples by class, and none.

    One line for each evaluation seed and precision; header only where no result has such shares.
    """
    records = [content.get("evaluation") or {} for content in read_results(suite, results)]
    records = [record for record in records if "shares_before" in record]
    names = [str(name) for name in records[0]["class_names"]] if records else []
    lines = {
        (f"seed {r['seed']}, N {r['samples']}, {r['sampler']['precision']}", *(f"{x:.1f}" for x in r["shares_before"]))
        for r in records
    }
    return [["original's samples, %", *names, "none"], *map(list, sorted(lines))]


def _only(rows: list[dict[str, Any]], field: str, wanted: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of some methods, targets or seeds: those measured on different ones cannot be compared."""
    known = {str(row[field]) for row in rows if field in row}
    if wanted and not known:
        raise VduError(f"these results have no {field}s: leave --{field} out")
    for value in wanted:
        if value not in known:
            raise VduError(f"no result is of the {field} {value!r}: {nearest(value, known)}")
    return [row for row in rows if str(row.get(field)) in wanted] if wanted else rows


def render(
    suite: str,
    results: Path,
    format_: str,
    only: Mapping[str, Sequence[object]] | None = None,
    columns: Sequence[str] = (),
) -> str:
    """The whole text that `vdu bench show` prints: Markdown tables, or JSON rows.

    ``only`` holds, by field (method, target, seed), the values of which rows are shown. With ``columns`` there is only
    the table of the methods, of these figures. Raises `VduError` for an unknown format or column, and where there is no
    result of the suite or of a value.
    """
    if format_ not in ("table", "json"):
        raise VduError(f"unknown format {format_!r}: give table or json")
    rows = read_rows(suite, results)
    for field, values in (only or {}).items():
        rows = _only(rows, field, [str(value) for value in values])
    of_steps = suite == "step-cost" or suite.startswith(("memory-", "cost-"))
    if columns and (of_steps or format_ == "json"):
        raise VduError("--columns are those of the table of a suite's methods: leave it out here")
    if format_ == "json":
        return json.dumps(rows, indent=1, allow_nan=False)
    if of_steps:
        header = list(dict.fromkeys(name for row in rows for name in row))
        return _aligned([header, *([_plain(row.get(name)) for name in header] for row in rows)])
    if columns:
        return _aligned(summary(rows, columns))
    shown_by_target = ("ua",) if is_of_concepts(rows) else ("pul", "u_fid_ratio")
    by_target = [_by_target(rows, figure) for figure in shown_by_target]
    tables = [summary(rows), *by_target, _original_shares(suite, results)]
    return "\n\n".join(_aligned(lines) for lines in tables if len(lines) > 1)
