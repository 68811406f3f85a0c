"""Tables of a suite: every row as JSON, or mean (least … most) of each method in Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from vdu.bench.rows import is_of_concepts, is_of_steps, lead_figure, only, read_results, read_rows
from vdu.errors import VduError, nearest

__all__ = ["named_columns", "render", "summary"]

NOT_MEASURED = "–"
ORIGINAL = "(original)"

CLASS_COLUMNS = {
    "given": "is given",
    "pul": "PUL, %",
    "share_after": "share left, %",
    "share_none": "of no class, %",
    "none_rise": "of no class, points more",
    "u_fid": "u-FID",
    "u_fid_original": "u-FID, original",
    "u_fid_oracle": "u-FID, retrained",
    "u_fid_ratio": "u-FID, ratio",
    "kid_ratio": "KID, ratio",
    "total_variation": "TV of the rest, %",
    "changed": "others changed, %",
    "passes": "passes",
    "seconds": "seconds",
}
CONCEPT_COLUMNS = {
    "given": "is given",
    "ua": "UA, %",
    "ua_none": "nothing seen, %",
    "ua_paraphrase": "UA paraphrased, %",
    "ua_attack": "UA attacked, %",
    "ua_attack_original": "original attacked, %",
    "ua_random": "UA, random words, %",
    "ira": "IRA, %",
    "cra": "CRA, %",
    "cra_target": "CRA of the target, %",
    "fid_to_original": "distance of the rest",
    "passes": "passes",
    "seconds": "seconds",
}
OF_ORIGINAL = ("ua", "ua_none", "ua_paraphrase", "ira", "cra", "cra_target")  # measured on it too
BY = ("target", "seed")


def _decimals(figure: str) -> int:
    """Two for a distance, none for what is counted in hundreds, one for percent."""
    return 2 if "fid" in figure or "kid" in figure else 0 if figure in ("passes", "seconds") else 1


def _number(value: float, figure: str) -> str:
    return f"{value:.{_decimals(figure)}f}".replace("-", "−")


def _cell(rows: Iterable[dict[str, Any]], figure: str) -> str:
    """Mean (least … most), and of how many where some runs did not measure it; a dash where none did; or words."""
    every = [row.get(figure) for row in rows]
    there = [v for v in every if v is not None]
    if not there:
        return NOT_MEASURED
    if figure == "given":
        return " / ".join(dict.fromkeys(there))
    average, least, most = (_number(v, figure) for v in (mean(there), min(there), max(there)))
    ends = f" ({least} … {most})" if len(there) > 1 else ""
    some = f", {len(there)} of {len(every)}" if len(there) < len(every) else ""
    return f"{average}{ends}{some}"


def _plain(value: object) -> str:
    return NOT_MEASURED if value is None else str(value)


def named_columns(text: str) -> list[str]:
    """The figures of a list with commas between, as ``--columns`` has it."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _columns(known: Iterable[str], wanted: Sequence[str]) -> list[str]:
    for column in wanted:
        if column not in known:
            raise VduError(f"there is no column {column!r}: {nearest(column, known)}")
    return [*(wanted or known)]


def _methods(rows: list[dict[str, Any]]) -> list[str]:
    """Those that were given least first, among equals the one that forgot most."""
    lead = lead_figure(rows)

    def order(method: str) -> tuple[int, str, float]:
        finished = [r for r in rows if r["method"] == method and lead in r]
        given = max((r.get("given") or "" for r in finished), default="")
        forgotten = [r[lead] for r in finished if r[lead] is not None]
        return given.count(","), given, -mean(forgotten or [0.0])

    return sorted(sorted({r["method"] for r in rows}), key=order)


def _lines(rows: list[dict[str, Any]], methods: Sequence[str], columns: Sequence[str]) -> list[list[str]]:
    """One line for each of ``methods`` that has rows, in a suite of concepts after one for the original model."""
    lead, lines = lead_figure(rows), []
    if is_of_concepts(rows):
        # Rows of another machine or commit have another original: each is counted once.
        once = {(r["target"], *(r.get(f"{c}_original") for c in OF_ORIGINAL)): r for r in rows if lead in r}.values()
        originals = [{c: r[f"{c}_original"] for c in OF_ORIGINAL} for r in once]
        lines.append([ORIGINAL, NOT_MEASURED, *(_cell(originals, c) for c in columns)])
    for method in methods:
        mine = [r for r in rows if r["method"] == method]
        finished = [r for r in mine if lead in r]
        if mine:
            lines.append([method, str(len(finished)), *(_cell(finished, c) for c in columns)])
    return lines


def summary(
    rows: list[dict[str, Any]], wanted: Sequence[str] = (), by: str = "", methods: Sequence[str] = ()
) -> list[list[str]]:
    """Header and one line for each method: runs, mean (least … most) of each figure, or of the ``wanted`` ones.

    ``by`` "target" or "seed" gives each of these lines of its own; ``methods`` is another order of the lines. In a
    suite of concepts the original model is the first line, over the same targets and seeds. Raises `VduError` for a
    figure or field that there is not.
    """
    titles = CONCEPT_COLUMNS if is_of_concepts(rows) else CLASS_COLUMNS
    columns, methods = _columns(titles, wanted), methods or _methods(rows)
    header = ["method", "runs", *(titles[c] for c in columns)]
    if not by:
        return [header, *_lines(rows, methods, columns)]
    if by not in BY:
        raise VduError(f"tables are split by {' or '.join(BY)}, not by {by!r}")
    values = sorted({r[by] for r in rows}, key=lambda value: (isinstance(value, str), value))
    groups = {str(value): [r for r in rows if r[by] == value] for value in values}
    return [[by, *header], *([v, *line] for v, mine in groups.items() for line in _lines(mine, methods, columns))]


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rule = ["-" * width for width in widths]
    shown = [lines[0], rule, *lines[1:]]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in shown)


def _by_target(rows: list[dict[str, Any]], figure: str) -> list[list[str]]:
    """A figure of each method (columns) on each target (lines), mean (least … most) over seeds."""
    methods = _methods(rows)
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


def _of_steps(rows: list[dict[str, Any]], wanted: Sequence[str]) -> list[list[str]]:
    """Every row with all that it holds, or with the ``wanted`` fields."""
    known = list(dict.fromkeys(name for row in rows for name in row))
    header = _columns(known, wanted)
    return [header, *([_plain(row.get(name)) for name in header] for row in rows)]


def render(
    suite: str,
    results: Path,
    format_: str,
    chosen: Mapping[str, Sequence[object]] | None = None,
    columns: Sequence[str] = (),
    by: str = "",
) -> str:
    """The whole text that `vdu bench show` prints: Markdown tables, or JSON rows.

    ``chosen`` holds, by field (method, target, seed), the values of which rows are shown. With ``columns`` or ``by``
    (`summary`) there is only the table of the methods, in the order in which they were chosen. Raises `VduError` for an
    unknown format, column or field, and where there is no result of the suite or of a value.
    """
    if format_ not in ("table", "json"):
        raise VduError(f"unknown format {format_!r}: give table or json")
    rows = read_rows(suite, results)
    for field, values in (chosen or {}).items():
        rows = only(rows, field, [str(value) for value in values])
    if format_ == "json":
        if columns or by:
            raise VduError("--columns and --by are those of tables: leave them out here")
        return json.dumps(rows, indent=1, allow_nan=False)
    if is_of_steps(suite):
        if by:
            raise VduError(f"--by is for tables of methods, which {suite} has not: leave it out here")
        return _aligned(_of_steps(rows, columns))
    if columns or by:
        methods = dict.fromkeys(str(method) for method in (chosen or {}).get("method", ()))
        return _aligned(summary(rows, columns, by, [*methods]))
    shown_by_target = ("ua",) if is_of_concepts(rows) else ("pul", "u_fid_ratio")
    by_target = [_by_target(rows, figure) for figure in shown_by_target]
    tables = [summary(rows), *by_target, _original_shares(suite, results)]
    return "\n\n".join(_aligned(lines) for lines in tables if len(lines) > 1)
