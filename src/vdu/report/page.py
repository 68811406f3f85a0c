"""The HTML report of one unlearning run: a verdict in one sentence, figures with intervals, pictures, curves, settings.

One file that loads nothing: inline CSS, PNG data URIs, hand-drawn SVG. Figures arrive as the dicts of the run and of
its evaluation; what was not measured is called that and never printed as zero.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from vdu.images.grids import before_after, image_grid, png_data_uri, thumbnails
from vdu.prompts import quoted_prompts
from vdu.report.charts import curve

__all__ = ["NOT_MEASURED", "figure_rows", "number", "percent", "settings_rows", "verdict", "write_report"]

NOT_MEASURED = "not measured"
FORGOTTEN_FROM = 50.0  # the PUL interval's low end, in percent
NONE_RISE = 3.0  # points of "none" that quality may cost, where the rise's interval excludes zero
FID_RATIO = 1.15
SAMPLES_PER_DIMENSION = 10  # under it u-FID is mostly the bias of few samples
SHOWN_PAIRS, SHOWN_FORGET, COLUMNS = 48, 40, 8


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


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def number(value: Any, digits: int = 1) -> str:
    """Rounded, but a small figure never becomes 0, nor one under 100 becomes 100. None and NaN: "not measured"."""
    finite = _finite(value)
    if finite is None:
        return NOT_MEASURED
    text = f"{finite:.{digits}f}"
    if float(text) == 0:
        return f"{finite:.1g}" if finite else f"{0:.{digits}f}"
    return f"{finite:.{digits + 2}f}" if float(text) == 100 != finite else text


def percent(value: Any) -> str:
    """`number` with its sign; ``value`` is in percent already."""
    return NOT_MEASURED if _finite(value) is None else f"{number(value)} %"


def _range(interval: dict[str, Any] | None) -> str:
    low, high = (_finite((interval or {}).get(edge)) for edge in ("low", "high"))
    return "" if low is None or high is None else f"{number(low)} to {number(high)}"


def _estimate(interval: dict[str, Any] | None) -> Cell:
    return Cell(percent((interval or {}).get("value")), _range(interval))


def _value(evaluation: dict[str, Any], name: str) -> float | None:
    return _finite((evaluation.get(name) or {}).get("value"))


def forgot(evaluation: dict[str, Any]) -> bool | None:
    """Whether the PUL interval's low end reaches 50 %; None when there was nothing to forget."""
    low = _finite((evaluation.get("pul") or {}).get("low"))
    return None if low is None else low >= FORGOTTEN_FROM


def _few(evaluation: dict[str, Any]) -> str:
    """What u-FID is made of where that is little for its dimensions; empty where it is enough."""
    count, dimensions = evaluation.get("u_fid_samples"), (evaluation.get("extractor") or {}).get("dimensions")
    if count is None or dimensions is None or evaluation.get("u_fid") is None:
        return ""
    if count >= SAMPLES_PER_DIMENSION * dimensions:
        return ""
    return f"only {count} samples for {dimensions} features"


def _compared_fid(evaluation: dict[str, Any]) -> str:
    fid, original = (number(evaluation[name], 2) for name in ("u_fid", "u_fid_original"))
    few = _few(evaluation)
    return f"u-FID {fid}, original {original}" + (f", both rough: {few}" if few else "")


def _of_no_class(evaluation: dict[str, Any]) -> tuple[str, bool]:
    """That the share of none rose, empty where it did by no more than is allowed; whether more than chance did it."""
    rise = evaluation.get("share_none_rise") or {}
    value, low = _finite(rise.get("value")), _finite(rise.get("low"))
    if value is None or low is None or value <= NONE_RISE:
        return "", False
    before, after = (percent(_value(evaluation, name)) for name in ("share_none_before", "share_none"))
    return f"pictures of no class rose from {before} to {after}, 95 % interval {_range(rise)} points more", low > 0


def quality_losses(evaluation: dict[str, Any]) -> list[str]:
    """What got worse by more than is allowed, with the figures."""
    losses, (rose, surely) = [], _of_no_class(evaluation)
    fid, fid_before = _finite(evaluation.get("u_fid")), _finite(evaluation.get("u_fid_original"))
    if fid is not None and fid_before is not None and fid > FID_RATIO * fid_before:
        losses.append(_compared_fid(evaluation))
    return [*losses, rose] if surely else losses


def _distance_clause(evaluation: dict[str, Any]) -> str:
    if all(_finite(evaluation.get(name)) is not None for name in ("u_fid", "u_fid_original")):
        kept = "its other pictures kept their quality"
        kid, kid_before = _finite(evaluation.get("kid")), _finite(evaluation.get("kid_original"))
        if kid is not None and kid_before is not None and kid > FID_RATIO * kid_before > 0:
            against = f"KID {number(kid, 3)}, original {number(kid_before, 3)}"
            return f"{kept} by u-FID ({_compared_fid(evaluation)}), not by KID ({against})"
        return f"{kept} ({_compared_fid(evaluation)})"
    before, after = (percent(_value(evaluation, name)) for name in ("share_none_before", "share_none"))
    return f"u-FID was not measured (pictures of no class: {before} before, {after} after)"


def _quality_clause(evaluation: dict[str, Any]) -> str:
    """What became of the other pictures; a rise of "none" that may be chance is told, and is no loss."""
    if losses := quality_losses(evaluation):
        return f"the quality of its other pictures fell ({'; '.join(losses)})"
    rose, _ = _of_no_class(evaluation)
    return _distance_clause(evaluation) + (f"; {rose}: it may be chance" if rose else "")


def _evaluated_verdict(evaluation: dict[str, Any]) -> str:
    name, count, done = f"class {evaluation['target']}", evaluation["samples"], forgot(evaluation)
    quality, pul = _quality_clause(evaluation), evaluation.get("pul") or {}
    if done is None:
        found = f"the detector found it in {evaluation.get('count_before', 'none')} of the original's {count} pictures"
        return f"Whether the model forgot {name} cannot be said: {found}; {quality}."
    shares = [percent(_value(evaluation, share)) for share in ("share_before", "share_after")]
    made = f"in {shares[0]} of its pictures before and in {shares[1]} after"
    basis = f"(PUL {percent(pul['value'])}, 95 % interval {_range(pul)}, N = {count})"
    start = f"The model made {name} {made}" if done else f"The model did NOT forget {name}: it made it {made}"
    link = "; but " if done and quality_losses(evaluation) else "; "
    return f"{start} {basis}{link}{quality}."


def _guard_ends(unlearning: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The guard's figures before the first step and at the kept step."""
    best = unlearning["best_step"]
    seen = [g for g in unlearning["guard"] if g["step"] <= best]
    if not seen:
        return None
    return seen[0], seen[-1]


def _percent_of(fraction: Any) -> str:
    return NOT_MEASURED if _finite(fraction) is None else percent(100 * fraction)


def _guard_verdict(unlearning: dict[str, Any]) -> str:
    judge, ends = unlearning.get("guard_judge", "label-free"), _guard_ends(unlearning)
    who = "the label-free guard" if judge == "label-free" else f"the guard, counting with {judge},"
    why = "no detector was given" if judge == "label-free" else "no evaluation was made"
    start = f"Forgetting was not measured: {why}"
    if ends is None:
        return f"{start}; {who} recorded nothing."
    if unlearning["best_step"] == 0:
        return f"{start}; {who} accepted no step, so the result is the original: the model did NOT forget."
    before, after = (_finite(end["forget_share"]) for end in ends)
    failed = before is not None and after is not None and after > before * (1 - FORGOTTEN_FROM / 100)
    saw = "did NOT see the model forget, with" if failed else "saw"
    made = "" if before is None else f"{_percent_of(before)} of the pictures before and in "
    broken = ", where it found the pictures broken" if ends[1].get("broken") else ""
    return f"{start}; {who} {saw} the forget content in {made}{_percent_of(after)} at step {ends[1]['step']}{broken}."


def verdict(unlearning: dict[str, Any], evaluation: dict[str, Any] | None) -> str:
    """One sentence: what was forgotten, on what evidence, at what cost; failure is called failure."""
    return _guard_verdict(unlearning) if evaluation is None else _evaluated_verdict(evaluation)


def _outcome(evaluation: dict[str, Any] | None) -> str:
    """``good``, ``bad`` or ``open``, for the verdict's colour."""
    done = None if evaluation is None else forgot(evaluation)
    if evaluation is None or (done is None and not quality_losses(evaluation)):
        return "open"
    if done and _finite(evaluation.get("u_fid")) is None and _value(evaluation, "share_none") is None:
        return "open"  # noise would look the same
    return "good" if done and not quality_losses(evaluation) else "bad"


def figure_rows(evaluation: dict[str, Any]) -> list[Row]:
    """The figures table: label, original, unlearned."""
    e, name = evaluation, f"class {evaluation['target']}"
    counts = [Cell(str(e.get(key, NOT_MEASURED))) for key in ("count_before", "count_after")]
    rise = e.get("share_none_rise") or {}
    u_fid = f"u-FID (rough: {e['u_fid_samples']} samples)" if _few(e) else "u-FID"
    rows = [
        Row(f"Share of {name}", _estimate(e.get("share_before")), _estimate(e.get("share_after"))),
        Row(f"Pictures of {name}, of {e['samples']}", *counts),
        Row("Share of retained classes", _estimate(e.get("share_retained_before")), _estimate(e.get("share_retained"))),
        Row("Share of none", _estimate(e.get("share_none_before")), _estimate(e.get("share_none"))),
        Row("None more, in points", ABSENT, Cell(number(rise.get("value")), _range(rise))),
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
    shares = [(step, None if _finite(y) is None else 100 * y, broken) for step, y, broken in seen]
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
    filters = {"number": number, "percent": percent, "fraction": _percent_of, "prompts": quoted_prompts}
    environment.filters |= filters
    html = environment.get_template("report.html.j2").render(
        u=unlearning,
        e=evaluation,
        verdict=verdict(unlearning, evaluation),
        outcome=_outcome(evaluation),
        figures=figure_rows(evaluation) if evaluation else [],
        few=_few(evaluation) if evaluation else "",
        classes=_class_rows(evaluation) if evaluation else [],
        guard=_guard_ends(unlearning),
        pictures=_pictures(before, after, forget, marks),
        charts=_charts(unlearning),
        settings=settings_rows(unlearning["settings"]),
        versions=settings_rows(unlearning["versions"]),
        other_model=evaluation is not None and evaluation.get("unlearned_sha256") != unlearning["result_sha256"],
    )
    path.write_text(html, encoding="utf-8")
