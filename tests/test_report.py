"""The report, the model card and the picture grids: what they say, what they must not say, what they must not load."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from vdu.report.charts import curve
from vdu.report.figures import figure_rows, number, percent
from vdu.report.model_card import write_model_card
from vdu.report.page import write_report
from vdu.report.verdict import cautions, outcome, verdict

SHA = {name: name[0] * 64 for name in ("original", "unlearned", "forget", "detector")}


@pytest.fixture
def unlearning() -> dict[str, Any]:
    rise = {"learning_rate": 1e-4, "gradient_norm": 0.5, "stability": None}
    look = {"none_share": 0.04, "diversity": 0.98, "change": 0.2, "score": 0.1, "broken": False}
    return {
        "schema": 1,
        "vdu_version": "0.1.0",
        "git_commit": None,
        "model": "mnist",
        "model_sha256": SHA["original"],
        "result_sha256": SHA["unlearned"],
        "method": "vdu",
        "settings": {"steps": 80, "gamma": 0.5, "learning_rate": 1e-4, "stop_share": None, "parameters": "*"},
        "seed": 0,
        "precision": "bf16",
        "device": "cpu",
        "forget": {"source": "threes", "images": 100, "sha256": SHA["forget"], "notices": ["2 images were resized"]},
        "target": "3",
        "share": 0.11,
        "share_source": "estimated",
        "posterior": {"source": "zoo", "count": 8, "floor_share": 0.2},
        "steps": 80,
        "best_step": 80,
        "stop_reason": "all steps taken",
        "seconds": 41.2,
        "preparation_seconds": 14.0,
        "history": [{"step": i + 1, "loss": 1 / (i + 1) + 0.1, **rise} for i in range(80)],
        "guard": [{"step": i, "forget_share": 0.11 * (1 - i / 82), **look} for i in range(0, 81, 20)],
        "versions": {"torch": "2.13.0", "diffusers": "0.35.0"},
    }


def _interval(value: float | None, half: float = 1.0) -> dict[str, float | None]:
    return {
        "value": value,
        "low": None if value is None else value - half,
        "high": None if value is None else value + half,
    }


@pytest.fixture
def evaluation() -> dict[str, Any]:
    before = [9.9, 10.4, 9.7, 12.1, 9.6, 8.7, 9.5, 9.8, 8.9, 9.3, 2.1]
    after = [11.0, 11.9, 11.2, 0.2, 10.7, 10.4, 10.6, 11.0, 10.2, 10.5, 2.3]
    return {
        "schema": 1,
        "original": "mnist",
        "unlearned": "this result",
        "original_sha256": SHA["original"],
        "unlearned_sha256": SHA["unlearned"],
        "target": "3",
        "samples": 2000,
        "seed": 1000,
        "sampler": {"name": "SDE-DPM-Solver++(2M)", "steps": 12, "precision": "bf16"},
        "detector": {"name": "mnist-classifier", "sha256": SHA["detector"], "threshold": 0.71},
        "class_names": [str(i) for i in range(10)],
        "pul": {"value": 98.4, "low": 97.0, "high": 99.3},
        "count_before": 242,
        "count_after": 4,
        "became": {"still": 4, "other": 230, "none": 8},
        "share_before": _interval(12.1),
        "share_after": {"value": 0.2, "low": 0.1, "high": 0.5},
        "share_none_before": _interval(2.1),
        "share_none": _interval(2.3),
        "share_none_rise": {"value": 0.2, "low": -0.4, "high": 0.8},
        "share_retained_before": _interval(85.8),
        "share_retained": _interval(97.5),
        "shares_before": before,
        "shares_after": after,
        "total_variation": 2.2,
        "changed": 4.7,
        "u_fid": 3.1,
        "u_fid_original": 3.0,
        "u_fid_oracle": None,
        "kid": 0.0021,
        "kid_original": -0.0003,
        "precision": 91.2,
        "recall": 88.4,
        "precision_original": 91.6,
        "recall_original": 89.0,
        "extractor": {
            "name": "mnist-classifier",
            "sha256": SHA["detector"],
            "dimensions": 64,
            "reference_images": 9000,
        },
        "seconds": 60.0,
    }


def _render(tmp_path: Path, unlearning: dict[str, Any], evaluation: dict[str, Any] | None, size: int = 28) -> str:
    images = torch.rand(3, 16, 1, size, size) * 2 - 1
    marks = [i % 4 == 0 for i in range(16)] if evaluation else None
    path, (before, after, forget) = tmp_path / "report.html", images
    write_report(
        path, unlearning=unlearning, evaluation=evaluation, before=before, after=after, forget=forget, marks=marks
    )
    return path.read_text(encoding="utf-8")


def test_verdict_of_success(unlearning: dict[str, Any], evaluation: dict[str, Any]) -> None:
    assert verdict(unlearning, evaluation) == (
        "The model made class 3 in 12.1 % of its pictures before and in 0.2 % after (PUL 98.4 %, 95 % interval 97.0 to "
        "99.3, N = 2000); its other pictures kept their quality (u-FID 3.10, original 3.00)."
    )


def test_verdict_of_failure(unlearning: dict[str, Any], evaluation: dict[str, Any]) -> None:
    evaluation["pul"] = {"value": 55.0, "low": 49.9, "high": 60.0}
    assert verdict(unlearning, evaluation).startswith("The model did NOT forget class 3: it made it in 12.1 %")
    evaluation |= {"pul": {"value": 100.0, "low": 25.0, "high": 100.0}, "count_before": 4}
    assert verdict(unlearning, evaluation).startswith("It is not certain that the model forgot class 3: it made it in")
    assert outcome(evaluation) == "open"
    same = unlearning | {"result_sha256": unlearning["model_sha256"], "guard": []}
    assert verdict(same, None).endswith("the result is the original, weight for weight: the model did NOT forget.")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"u_fid": 3.46}, "the quality of its pictures fell (u-FID 3.46, original 3.00)"),
        (
            {"share_none": _interval(5.2), "share_none_rise": {"value": 3.1, "low": 0.2, "high": 6.0}},
            "fell (pictures of no class rose from 2.1 % to 5.2 %, 95 % interval 0.2 to 6.0 points more, 8 of them in",
        ),
    ],
)
def test_verdict_of_lost_quality(
    unlearning: dict[str, Any], evaluation: dict[str, Any], change: dict[str, Any], said: str
) -> None:
    sentence = verdict(unlearning, evaluation | change)
    assert said in sentence
    assert "; but " in sentence
    assert "kept their quality" not in sentence


def test_a_rise_of_none_that_may_be_chance_is_told_and_is_no_verdict(
    unlearning: dict[str, Any], evaluation: dict[str, Any]
) -> None:
    rise = {"share_none": _interval(5.6), "share_none_rise": {"value": 3.5, "low": -0.8, "high": 7.8}}
    kept = "; its other pictures kept their quality (u-FID 3.10, original 3.00); pictures of no class rose from 2.1 %"
    told = f"{kept} to 5.6 %, 95 % interval -0.8 to 7.8 points more, 8 of them in the place of the class"
    assert verdict(unlearning, evaluation | rise).endswith(f"{told}: it may be chance.")
    small = {"share_none": _interval(5.0), "share_none_rise": {"value": 2.9, "low": 0.2, "high": 5.6}}
    assert "no class" not in verdict(unlearning, evaluation | small)


def test_what_makes_figures_hard_to_believe_is_said(unlearning: dict[str, Any], evaluation: dict[str, Any]) -> None:
    assert cautions(unlearning, None) == cautions(unlearning, evaluation) == []
    (blind,) = cautions(unlearning, evaluation | {"share_none_before": _interval(54.0)})
    assert blind.startswith("The detector sees no class in 54.0 % of the original's own pictures")
    (lost,) = cautions(unlearning, evaluation | {"became": {"still": 0, "other": 5, "none": 7}})
    assert lost.startswith("Of the original's 12 pictures of the class 7 became pictures of no class")
    estimated = unlearning | {"share": 0.01, "share_source": "estimated"}
    seen = {"share_before": {"value": 25.0, "low": 19.5, "high": 31.4}}
    (share,) = cautions(estimated, evaluation | seen)
    assert "took 1.0 % of the original's pictures for undesired" in share
    assert "25.0 % (19.5 to 31.4)" in share
    assert "--share 0.25" in share
    for other in ({"share": 0.1}, {"share_source": "given"}, {"prompts": {"forget": ["x"]}}):
        assert cautions(estimated | other, evaluation | seen) == []


def test_a_verdict_says_why_there_is_no_distance(unlearning: dict[str, Any], evaluation: dict[str, Any]) -> None:
    none = {"u_fid": None, "u_fid_original": None, "kid": None, "distances_missing": "no reference was given"}
    said = "u-FID was not measured: no reference was given (pictures of no class: 2.1 % before, 2.3 % after)"
    assert said in verdict(unlearning, evaluation | none)
    few = none | {"kid": 0.05, "kid_original": 0.04, "distances_missing": "too few"}
    said = "not measured: too few (got worse by KID 0.050, original 0.040; pictures of no class: 2.1 % before, 2.3 %"
    assert said in verdict(unlearning, evaluation | few)


def test_what_kid_alone_calls_worse_is_no_success(unlearning: dict[str, Any], evaluation: dict[str, Any]) -> None:
    none = {"u_fid": None, "u_fid_original": None, "distances_missing": "too few"}
    assert outcome(evaluation | none | {"kid": 0.041, "kid_original": 0.04}) == "good"
    assert outcome(evaluation | none | {"kid": 0.0002, "kid_original": -0.0001}) == "good"
    for before in (-0.0001, 0.0):
        assert outcome(evaluation | none | {"kid": 900.0, "kid_original": before}) == "open"
    ruined = evaluation | none | {"kid": 900.0, "kid_original": 0.04}
    assert outcome(ruined) == "open"
    assert "not measured: too few (got worse by KID 900.000, original 0.040; " in verdict(unlearning, ruined)


def test_pictures_of_no_class_in_the_place_of_the_class_are_told_apart(
    unlearning: dict[str, Any], evaluation: dict[str, Any]
) -> None:
    rise = {"share_none": _interval(12.2), "share_none_rise": {"value": 10.1, "low": 8.7, "high": 11.5}}
    lost = evaluation | rise | {"became": {"still": 0, "other": 40, "none": 202}}
    assert "11.5 points more, 202 of them in the place of the class)" in verdict(unlearning, lost)


def test_a_share_that_no_run_takes_is_not_advised(unlearning: dict[str, Any], evaluation: dict[str, Any]) -> None:
    estimated = unlearning | {"share": 0.4, "share_source": "estimated"}
    (none,) = cautions(estimated, evaluation | {"share_before": {"value": 0.0, "low": 0.0, "high": 0.2}})
    assert "--share" not in none
    assert "whether the forget images show that class" in none
    (all_of_it,) = cautions(estimated, evaluation | {"share_before": {"value": 99.8, "low": 99.0, "high": 100.0}})
    assert "--share 0.99" in all_of_it


def test_a_verdict_says_when_the_two_distances_disagree(unlearning: dict[str, Any], evaluation: dict[str, Any]) -> None:
    kept = "kept their quality by u-FID (u-FID 3.10, original 3.00), not by KID (KID 0.058, original 0.037)"
    assert kept in verdict(unlearning, evaluation | {"kid": 0.058, "kid_original": 0.037})
    for before, after in ((0.037, 0.042), (-0.001, 0.002), (None, 0.1), (0.1, None)):
        sentence = verdict(unlearning, evaluation | {"kid": after, "kid_original": before})
        assert "kept their quality (u-FID 3.10, original 3.00)" in sentence


def test_few_samples_are_named_beside_the_distance_that_they_spoil(
    tmp_path: Path, unlearning: dict[str, Any], evaluation: dict[str, Any]
) -> None:
    enough, few = (evaluation | {"u_fid_samples": count} for count in (640, 262))
    rough = "u-FID 3.10, original 3.00, both rough: only 262 samples for 64 features"
    assert rough in verdict(unlearning, few)
    assert "kept their quality" in verdict(unlearning, few)
    assert rough.replace("3.10", "9.00") in verdict(unlearning, few | {"u_fid": 9.0})
    assert "rough" not in verdict(unlearning, enough)
    labels = [[row.label for row in figure_rows(e)] for e in (evaluation, enough, few, few | {"u_fid": None})]
    assert ["u-FID (rough: 262 samples)" in names for names in labels] == [False, False, True, False]
    assert "too large for both models" in _render(tmp_path, unlearning, few)
    assert "too large for both models" not in _render(tmp_path, unlearning, enough)


def test_verdict_claims_nothing_that_was_not_measured(unlearning: dict[str, Any], evaluation: dict[str, Any]) -> None:
    assert "u-FID was not measured" in verdict(unlearning, evaluation | {"u_fid": None})
    nothing = evaluation | {"pul": _interval(None), "count_before": 0, "share_before": _interval(0.0, 0)}
    assert "cannot be said" in verdict(unlearning, nothing)


def test_verdict_without_evaluation(unlearning: dict[str, Any]) -> None:
    unlearning["guard"][-1]["forget_share"] = 0.004
    assert verdict(unlearning, None) == (
        "Forgetting was not measured: no detector was given; the label-free guard saw the forget content in 11.0 % of "
        "the pictures before and in 0.4 % at step 80."
    )
    unlearning["guard"][-1]["forget_share"] = 0.10
    assert "did NOT see the model forget" in verdict(unlearning, None)
    counted = verdict(unlearning | {"guard_judge": "judge.py"}, None)
    assert "no detector was given" not in counted
    assert "the guard, counting with judge.py," in counted
    assert verdict(unlearning | {"guard": []}, None).endswith("the label-free guard never looked.")
    assert "is the original: the model did NOT forget" in verdict(unlearning | {"best_step": 0}, None)


def test_report_with_evaluation_loads_nothing(
    tmp_path: Path, unlearning: dict[str, Any], evaluation: dict[str, Any]
) -> None:
    page = _render(tmp_path, unlearning, evaluation)
    assert verdict(unlearning, evaluation) in page
    for forbidden in ('src="http', "<link", "<script", "url(", "@import"):
        assert forbidden not in page
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]+)', page))
    assert page.count("<img") == len(re.findall(r'alt="[^"]{10,}"', page)) == 2
    assert page.count("<svg") == 2
    assert "97.0 to 99.3" in page
    assert "kept step 80" in page
    assert "2 images were resized" in page
    same = unlearning | {"guard_judge": evaluation["detector"]["name"]}
    chose = "The same detector also chose the kept step"
    assert chose in _render(tmp_path, same, evaluation)
    assert chose not in _render(tmp_path, same | {"guard": []}, evaluation)


def test_report_without_evaluation(tmp_path: Path, unlearning: dict[str, Any]) -> None:
    unlearning |= {"target": None, "posterior": None, "share": None, "guard": [], "history": []}
    page = _render(tmp_path, unlearning, None)
    assert "no class was named" in page
    assert "not measured, no evaluation was made" in page
    assert "Forgetting was measured" not in page
    assert "<svg" not in page


def test_hostile_names_are_escaped(tmp_path: Path, unlearning: dict[str, Any], evaluation: dict[str, Any]) -> None:
    hostile = "<script>alert(1)</script>|`[x](javascript:1)"
    evaluation["class_names"][3] = evaluation["target"] = hostile
    unlearning["model"] = unlearning["forget"]["source"] = hostile
    page = _render(tmp_path, unlearning, evaluation)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    write_model_card(tmp_path, unlearning, evaluation)
    body = (tmp_path / "README.md").read_text().split("\n---\n", 1)[1]
    assert "<script" not in body
    assert "[x](" not in body


def test_none_prints_as_not_measured(tmp_path: Path, unlearning: dict[str, Any], evaluation: dict[str, Any]) -> None:
    names = ("u_fid", "kid", "precision", "recall")
    missing = [*names, *(f"{name}_original" for name in names), "extractor"]
    full = _render(tmp_path, unlearning, evaluation)
    page = _render(tmp_path, unlearning, evaluation | dict.fromkeys(missing) | {"changed": float("nan")})
    assert "<td>not measured</td>" not in full
    assert page.count("<td>not measured</td>") == 9
    assert "nan" not in re.sub(r"base64,[^\"]+", "", page).lower().split("<body>")[1]


def test_other_weights_are_noticed(tmp_path: Path, unlearning: dict[str, Any], evaluation: dict[str, Any]) -> None:
    notice = "not the ones that this run produced"
    assert notice not in _render(tmp_path, unlearning, evaluation)
    assert notice in _render(tmp_path, unlearning, evaluation | {"unlearned_sha256": "0" * 64})


def test_report_takes_json_with_non_finite_figures(tmp_path: Path, unlearning: dict[str, Any]) -> None:
    broken = {"forget_share": 1.0, "none_share": 1.0, "diversity": 0.0, "change": float("inf"), "broken": True}
    unlearning["guard"].append({"step": 100, "score": float("inf"), **broken})
    unlearning["history"][5]["loss"] = float("nan")
    page = _render(tmp_path, json.loads(json.dumps(unlearning)), None, size=160)
    assert 'class="broken"' in page


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0.0"), (0.004, "0.004"), (99.97, "99.970"), (100, "100.0"), (None, "not measured")]
)
def test_numbers_are_not_rounded_into_claims(value: float | None, text: str) -> None:
    assert number(value) == text
    assert percent(value) == (text if value is None else f"{text} %")


def test_model_card(tmp_path: Path, unlearning: dict[str, Any], evaluation: dict[str, Any]) -> None:
    from huggingface_hub import ModelCard

    write_model_card(tmp_path, unlearning | {"model": "google/ddpm-cifar10-32"}, evaluation)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "diffusers"
    assert card.data.base_model == "google/ddpm-cifar10-32"
    assert card.data.tags == ["unlearning", "vdu"]
    for said in ("PUL 98.4 %", "2510.04058", "does not prove that fine-tuning", "| PUL | – | 98.4 % (97.0 to 99.3) |"):
        assert said in card.text
    write_model_card(tmp_path, copy.deepcopy(unlearning), None)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model is None
    assert "Forgetting was not measured" in card.text


@pytest.mark.parametrize("losses", [(1e-13, 2e-13), (1e-6, 1e-6 + 2e-13), (0.0, 0.0), (5e-324, 0.0), (0.5, 0.1)])
def test_a_curve_of_losses_that_hardly_differ_is_drawn_too(losses):
    drawn = curve("loss", [(step, loss, False) for step, loss in enumerate(losses, 1)], best=1)
    ticks = [height for height, _ in drawn["y_ticks"]]
    assert ticks == sorted(set(ticks), reverse=True)
    assert (ticks[0], ticks[-1]) == (172, 22)


def test_names_that_are_no_text_are_written_all_the_same(unlearning, tmp_path):
    keep = {"source": "f\udcfcr", "images": 9, "notices": ["3 images were resized"]}
    record = unlearning | {"model": "m\udcfc", "retain": keep}
    written = _render(tmp_path, record, None, size=8)
    assert "f\\udcfcr" in written
    assert "images to keep, 3 images were resized" in written
    write_model_card(tmp_path, record, None, "pipeline")
    assert "m\\udcfc" in (tmp_path / "README.md").read_text(encoding="utf-8")
