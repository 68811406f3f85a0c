"""The HTML report of one unlearning run: a verdict in one sentence, figures with intervals, pictures, curves, settings.

One file that loads nothing: inline CSS, PNG data URIs, hand-drawn SVG. Figures arrive as the dicts of the run and of
its evaluation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from vdu.images.grids import before_after, image_grid, png_data_uri, thumbnails
from vdu.prompts import quoted_prompts
from vdu.report.charts import curve
from vdu.report.figures import few_samples, figure_rows, finite, number, percent, percent_of
from vdu.report.verdict import cautions, guard_ends, outcome, verdict

__all__ = ["settings_rows", "write_report"]

SHOWN_PAIRS, SHOWN_FORGET, COLUMNS = 48, 40, 8


def _class_rows(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Per class and for none: shares as text and as bar lengths in percent of the longest bar."""
    before, after = evaluation["shares_before"], evaluation["shares_after"]
    names, longest = [*evaluation["class_names"], "none"], max([*before, *after, 1e-9])
    return [
        {
            "name": name,
            "target": index < len(names) - 1 and str(name) == str(evaluation["target"]),
            "bars": [("before", percent(b), 100 * b / longest), ("after", percent(a), 100 * a / longest)],
        }
        for index, (name, b, a) in enumerate(zip(names, before, after, strict=True))
    ]


def settings_rows(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values of a flat dict as text; None prints as "not set"."""
    shown = {k: f"{v:g}" if isinstance(v, float) else "not set" if v is None else str(v) for k, v in settings.items()}
    return list(shown.items())


def _charts(unlearning: dict[str, Any]) -> list[dict[str, Any] | None]:
    best = unlearning["best_step"]
    loss = [(h["step"], h["loss"], False) for h in unlearning["history"]]
    seen = [(g["step"], g["forget_share"], bool(g.get("broken"))) for g in unlearning["guard"]]
    shares = [(step, None if finite(y) is None else 100 * y, broken) for step, y, broken in seen]
    return [curve("Loss", loss, best), curve("Guard: forget share, %", shares, best, zero=True)]


def _pictures(before: Tensor, after: Tensor, forget: Tensor, marks: list[bool] | None) -> dict[str, Any]:
    pairs = min(len(before), len(after), SHOWN_PAIRS)
    scale = max(1, 96 // max(before.shape[-2:]))
    marks = None if marks is None else marks[:pairs]
    sheet = (
        before_after(thumbnails(before[:pairs]), thumbnails(after[:pairs]), COLUMNS, scale, marks) if pairs else None
    )
    asked = image_grid(thumbnails(forget[:SHOWN_FORGET]), COLUMNS, scale) if len(forget) else None
    shown = {"pairs": pairs, "marked": sum(marks or []), "marks": marks is not None, "forget": len(forget)}
    sheets = {"samples": sheet, "forget_images": asked}
    return shown | {k: image and {"uri": png_data_uri(image), "size": image.size} for k, image in sheets.items()}


def write_report(
    path: Path,
    *,
    unlearning: dict[str, Any],
    evaluation: dict[str, Any] | None,
    before: Tensor,
    after: Tensor,
    forget: Tensor,
    marks: list[bool] | None,
) -> None:
    """Write the report. Images ``(N, C, H, W)`` in [-1, 1]; ``before[i]`` and ``after[i]`` are of equal seed."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("vdu.report")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    filters = {"number": number, "percent": percent, "fraction": percent_of, "prompts": quoted_prompts}
    environment.filters |= filters
    html = environment.get_template("report.html.j2").render(
        u=unlearning,
        e=evaluation,
        verdict=verdict(unlearning, evaluation),
        outcome=outcome(evaluation),
        cautions=cautions(unlearning, evaluation),
        figures=figure_rows(evaluation) if evaluation else [],
        few=few_samples(evaluation) if evaluation else "",
        classes=_class_rows(evaluation) if evaluation else [],
        guard=guard_ends(unlearning),
        pictures=_pictures(before, after, forget, marks),
        charts=_charts(unlearning),
        settings=settings_rows(unlearning["settings"]),
        versions=settings_rows(unlearning["versions"]),
        other_model=evaluation is not None and evaluation.get("unlearned_sha256") != unlearning["result_sha256"],
    )
    path.write_text(html, encoding="utf-8", errors="backslashreplace")  # names of files may be no UTF-8
