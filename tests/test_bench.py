"""Tables and plots are made from result files alone."""

import json

import pytest
from conftest import run_vdu
from matplotlib.figure import Figure

from vdu import VduError
from vdu.bench.plots import KINDS, plot
from vdu.bench.rows import read_rows
from vdu.bench.suite import SUITES, read_suite
from vdu.bench.tables import render
from vdu.model_zoo import find_zoo_model


@pytest.fixture
def results(tmp_path):
    """Two methods on two targets, as the suite writes them."""
    folder = tmp_path / "some"
    folder.mkdir()
    for method, pul in (("vdu", 96.0), ("ga", 40.0)):
        for target in ("a", "b"):
            row = {"method": method, "target": target, "seed": 0, "pul": pul, "u_fid": 1.2, "u_fid_original": 0.8}
            shares = {"shares_before": [30.0, 60.0, 10.0], "shares_after": [2.0, 85.0, 13.0]}
            evaluation = {"class_names": ["a", "b"], "seed": 1000, "samples": 50, **shares}
            evaluation["sampler"] = {"precision": "fp32"}
            content = {"row": row | {"seconds": 5.0}, "evaluation": evaluation}
            (folder / f"{method}-{target}-0.json").write_text(json.dumps(content))
    return tmp_path


def _change(path, **figures):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"row": content["row"] | figures}))


def test_rows_carry_the_ratio_to_the_originals_distance_and_the_points_of_none(results):
    _change(results / "some" / "ga-a-0.json", kid=0.06, kid_original=0.04, share_none=24.0, share_none_before=20.5)
    _change(results / "some" / "ga-b-0.json", kid=0.06, kid_original=-0.001)
    rows = read_rows("some", results)
    assert {r["u_fid_ratio"] for r in rows} == {1.2 / 0.8}
    assert [r.get("kid_ratio") for r in rows] == [pytest.approx(1.5), None, None, None]
    assert [r.get("none_rise") for r in rows] == [3.5, None, None, None]


def test_a_table_of_some_figures(results):
    lines = render("some", results, "table", {"method": ["vdu"]}, ["u_fid_ratio", "pul"]).splitlines()
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "--" not in line] == [
        ["method", "runs", "u-FID, ratio", "PUL, %"],
        ["vdu", "2", "1.50 (1.50 … 1.50)", "96.0 (96.0 … 96.0)"],
    ]
    with pytest.raises(VduError, match="no column 'pull'"):
        render("some", results, "table", columns=["pull"])


def test_figures_cannot_be_chosen_of_what_is_no_table_of_methods(results):
    for asked in ({"columns": ["pul"]}, {"by": "target"}):
        with pytest.raises(VduError, match="leave them out here"):
            render("some", results, "json", **asked)
    (results / "step-cost").mkdir()
    (results / "step-cost" / "outputs.json").write_text(json.dumps({"row": {"form": "outputs", "per_step": 2.3}}))
    assert render("step-cost", results, "table", columns=["per_step"]).splitlines()[-1] == "| 2.3      |"
    with pytest.raises(VduError, match="--by is for tables of methods"):
        render("step-cost", results, "table", by="target")


@pytest.mark.parametrize(
    ("written", "said"), [("{", "cannot be read as JSON"), ("[]", "no record but a list"), ("{}", "was not written by")]
)
def test_a_file_that_no_suite_wrote_is_named(results, written, said):
    (results / "some" / "mine.json").write_text(written)
    with pytest.raises(VduError, match=rf"mine\.json .*{said}"):
        render("some", results, "table")


@pytest.mark.parametrize("option", [["--jobs", 2], ["--forget", "x"], ["--limit", 1], ["--cluster", "auto"]])
def test_options_that_a_measurement_of_steps_does_not_take_are_refused(tmp_path, monkeypatch, capsys, option):
    code, _, err = run_vdu(monkeypatch, capsys, "bench", "run", "step-cost", *option, "--results", tmp_path)
    assert (code, err.strip()) == (
        2,
        f"vdu: step-cost is measured whole, one after the other: leave {option[0]} out",
    )


def test_both_axes_are_shown_by_target(results):
    text = render("some", results, "table")
    assert "pul of target" in text
    assert "| a                     | 1.50 | 1.50 |" in text


def _drawn(kind, results):
    figure = Figure()
    KINDS[kind](figure, "some", results)
    return figure


@pytest.mark.parametrize(("kind", "x"), [("frontier", 1.2 / 0.8), ("cost", 5.0)])
def test_a_point_stands_for_every_run_under_the_name_of_its_method(results, kind, x):
    figure = _drawn(kind, results)
    points = {c.get_label(): c.get_offsets().tolist() for c in figure.axes[0].collections if len(c.get_offsets())}
    assert points == {"ga": [[x, 40.0]] * 2, "vdu": [[x, 96.0]] * 2}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ga", "vdu"]


def test_a_panel_for_each_method_shows_how_its_shares_moved(results):
    panels = [axes for axes in _drawn("classes", results).axes if axes.images]
    assert [axes.get_title() for axes in panels] == ["ga", "vdu"]
    for axes in panels:
        assert axes.images[0].get_array().tolist() == [[-28.0, 25.0, 3.0]] * 2
        assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "none"]


def test_a_run_without_the_figure_is_no_point_and_no_part_of_a_mean(results):
    _change(results / "some" / "vdu-a-0.json", u_fid=float("nan"), total_variation=float("nan"))
    assert sum(len(c.get_offsets()) for c in _drawn("frontier", results).axes[0].collections) == 3
    cells = {line.split("|")[1].strip(): line for line in render("some", results, "table").splitlines() if "|" in line}
    header, vdu = ([cell.strip() for cell in cells[name].split("|")] for name in ("method", "vdu"))
    shown = dict(zip(header, vdu, strict=True))
    assert (shown["u-FID"], shown["TV of the rest, %"]) == ("1.20, 1 of 2", "–")
    assert shown["PUL, %"] == "96.0 (96.0 … 96.0)"
    assert "NaN" not in render("some", results, "json")


@pytest.mark.parametrize("suffix", ["svg", "pdf"])
@pytest.mark.parametrize("kind", ["frontier", "cost", "classes"])
def test_every_plot_is_the_same_file_again(results, tmp_path, kind, suffix):
    first, second = tmp_path / f"1.{suffix}", tmp_path / f"2.{suffix}"
    plot(kind, "some", results, first)
    plot(kind, "some", results, second)
    assert first.read_bytes() == second.read_bytes()


def test_an_unknown_plot_and_a_suite_without_results_are_one_line(results, tmp_path, monkeypatch, capsys):
    for words in (["some", "--kind", "clases"], ["other"], ["some", "--out", tmp_path / "x.txt"]):
        options = ("--results", results, *(() if "--out" in words else ("--out", tmp_path / "x.svg")))
        code, _, err = run_vdu(monkeypatch, capsys, "bench", "plot", *words, *options)
        assert code == 2
        assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "x.svg").exists()


def test_amount_plot_needs_runs_that_were_given_different_amounts(results, tmp_path):
    out = tmp_path / "x.svg"
    with pytest.raises(VduError, match="all given as many forget images"):
        plot("amount", "some", results, out)
    for number, path in enumerate(sorted((results / "some").glob("*.json"))):
        content = json.loads(path.read_text())
        content["row"] |= {"pul_low": 30.0, "pul_high": 99.0}
        content["unlearning"] = {"forget": {"images": 5 * (1 + number)}, "method": "vdu", "settings": {}}
        path.write_text(json.dumps(content))
    assert sorted(r["forget_images"] for r in read_rows("some", results)) == [5, 10, 15, 20]
    plot("amount", "some", results, out)
    assert b"forget images (log scale)" in out.read_bytes()
    lines = [line for axes in _drawn("amount", results).axes for line in axes.get_lines()]
    ends = [line.get_xydata().flatten().tolist() for line in lines if line.get_marker() == "o"]
    ratio = 1.2 / 0.8
    assert ends == [[5, 40, 15, 96], [10, 40, 20, 96], [5, ratio, 15, ratio], [10, ratio, 20, ratio]]
    for path in (results / "some").glob("ga-*.json"):
        content = json.loads(path.read_text())
        content["unlearning"]["method"] = "ga"
        path.write_text(json.dumps(content))
    drawn = _drawn("amount", results)
    assert max(len(line.get_xydata()) for line in drawn.axes[0].get_lines() if line.get_marker() == "o") == 1
    named = {text.get_text() for text in drawn.legends[0].get_texts()}
    assert named == {f"{method}, {target}, seed 0" for method in ("vdu", "ga") for target in "ab"}
    _change(results / "some" / "ga-a-0.json", pul=None, pul_low=None, pul_high=None)  # the original made no "a"
    assert len(_drawn("amount", results).legends[0].get_texts()) == 3


def test_a_table_of_some_targets_is_made_of_their_rows_only(results):
    rows = json.loads(render("some", results, "json", {"target": ["b"]}))
    assert {(row["method"], row["target"]) for row in rows} == {("vdu", "b"), ("ga", "b")}
    assert "\n| a " not in render("some", results, "table", {"target": ["b"]})
    last = [cell.strip() for cell in render("some", results, "table").splitlines()[-1].split("|")[1:-1]]
    assert last == ["seed 1000, N 50, fp32", "30.0", "60.0", "10.0"]
    with pytest.raises(VduError, match="no result is of the target 'c'"):
        render("some", results, "table", {"target": ["a", "c"]})


def test_a_table_of_some_seeds_is_made_of_their_rows_only(results):
    content = json.loads((results / "some" / "vdu-a-0.json").read_text())
    content["row"]["seed"] = 1
    (results / "some" / "vdu-a-1.json").write_text(json.dumps(content))
    rows = {seed: json.loads(render("some", results, "json", {"seed": [seed]})) for seed in (0, 1)}
    assert [(row["method"], row["target"]) for row in rows[1]] == [("vdu", "a")]
    assert {row["seed"] for row in rows[0]} == {0}
    assert len(rows[0]) == 4
    with pytest.raises(VduError, match="no result is of the seed '99'"):
        render("some", results, "table", {"seed": [99]})


def test_lines_for_each_target_or_seed(results):
    _change(results / "some" / "vdu-b-0.json", pul=90.0)
    lines = render("some", results, "table", columns=["pul"], by="target").splitlines()[2:]
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines] == [
        *(["a", "vdu", "1", "96.0"], ["a", "ga", "1", "40.0"]),
        *(["b", "vdu", "1", "90.0"], ["b", "ga", "1", "40.0"]),
    ]
    for seed in (10, 2):
        _change(results / "some" / f"vdu-{'ab'[seed == 2]}-0.json", seed=seed)
    lines = render("some", results, "table", {"method": ["vdu", "ga", "vdu"]}, ["pul"], "seed").splitlines()[2:]
    assert [line.split("|")[1].strip() for line in lines] == ["0", "2", "10"]
    with pytest.raises(VduError, match="split by target or seed, not by 'class'"):
        render("some", results, "table", by="class")


def _give(path, **record):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"unlearning": record}))


def test_a_method_that_was_given_more_comes_after_those_that_were_given_less(results):
    for target in ("a", "b"):
        _give(results / "some" / f"vdu-{target}-0.json", retain={"images": 9}, prompts={"forget": [""]})
        _give(results / "some" / f"ga-{target}-0.json", posterior=None, share_source="estimated", prompts=None)
    lines = render("some", results, "table", columns=["given"]).splitlines()[2:]
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines] == [
        ["ga", "2", "forget images"],
        ["vdu", "2", "forget images, 9 images to keep"],
    ]
    asked = render("some", results, "table", {"method": ["vdu", "ga"]}, columns=["pul"]).splitlines()[2:]
    assert [line.split("|")[1].strip() for line in asked] == ["vdu", "ga"]


@pytest.mark.parametrize("name", sorted(path.stem for path in SUITES.glob("*.toml")))
def test_every_shipped_suite_asks_for_classes_that_its_model_knows(name):
    suite = read_suite(name)
    zoo = find_zoo_model(suite.model)
    assert zoo is not None
    asked = {*suite.targets, *(target for arm in suite.methods.values() for target in arm.targets or ())}
    assert asked <= set(zoo.class_names)


def test_a_part_of_a_suite_has_its_runs_and_no_others():
    suite = read_suite("mnist-digits")
    chosen = {"methods": ["siss", "vdu"], "targets": ["4", "0"], "seeds": [1]}
    part = suite.part(**chosen)
    wanted = [r for r in suite.runs() if r.label in ("siss", "vdu") and r.target in ("4", "0") and r.seed == 1]
    assert list(part.runs()) == wanted
    assert {r.label for r in wanted} == {"siss", "vdu"}
    assert list(suite.part().runs()) == list(suite.runs())


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--method", "vdu-quik", "no method 'vdu-quik' in suite mnist-digits: did you mean 'vdu-quick'"),
        ("--target", "ten", "no target 'ten' in suite mnist-digits"),
        ("--seed", "9", "no seed 9 in suite mnist-digits: Known: 0, 1, 2"),
    ],
)
def test_what_a_suite_has_not_is_not_run(tmp_path, monkeypatch, capsys, option, value, said):
    code, _, err = run_vdu(monkeypatch, capsys, "bench", "run", "mnist-digits", option, value, "--results", tmp_path)
    assert code == 2
    assert said in err
    assert not list(tmp_path.iterdir())


def test_a_measurement_of_one_step_has_no_parts(tmp_path, monkeypatch, capsys):
    code, _, err = run_vdu(monkeypatch, capsys, "bench", "run", "step-cost", "--seed", "0", "--results", tmp_path)
    assert code == 2
    assert "step-cost is measured whole" in err
