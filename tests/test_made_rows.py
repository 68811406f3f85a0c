"""Rows of another model, judge, images or number of samples are refused; runs that fail are rows and stop no others."""

import json
import sys
from dataclasses import replace

import pytest
from conftest import make_pipeline, run_vdu, runs_in_this_process  # noqa: F401 -- a fixture
from PIL import Image
from test_cli import assert_refused, brightness
from test_own_suite import METHOD, suite  # noqa: F401 -- a fixture

from vdu.bench.made_rows import MadeRows
from vdu.bench.runner import run_suite
from vdu.bench.suite import read_suite
from vdu.bench.tables import render
from vdu.errors import VduError

pytestmark = pytest.mark.usefixtures("runs_in_this_process", "few_samples")
JUDGE = "from test_cli import brightness\njudge = lambda x: brightness(x)\njudge.class_names = ['dark', 'bright']\n"


def fail(settings, preparation, network):
    raise RuntimeError("sizes do not\nmatch")


BROKEN = replace(METHOD, name="broken", build=fail)


def tired(images):
    """A judge that looks at few pictures at once."""
    return [].pop() if len(images) > 8 else brightness(images)


tired.class_names = ["dark", "bright"]


@pytest.fixture
def made(suite, tmp_path, monkeypatch):  # noqa: F811
    """The file of a suite whose judge is a file too, with a row of it in ``results``."""
    (tmp_path / "judge_of_mine.py").write_text(JUDGE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "judge_of_mine", raising=False)
    suite.write_text(suite.read_text().replace("test_own_suite:brightness", "judge_of_mine:judge"))
    run_suite(_short(suite), tmp_path / "results", None, 1, lambda _: None)
    return suite


def _short(file):
    return read_suite(str(file)).part(methods=["short"])


def _other_weights(folder):
    make_pipeline(seed=1).save_pretrained(folder / "own" / "pipeline")


def _other_judge(folder):
    (folder / "judge_of_mine.py").write_text(f"{JUDGE}judge.threshold = 0.9\n")


def _other_images(folder):
    Image.new("L", (8, 8), 130).save(folder / "own" / "forget" / "bright" / "0.png")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_other_weights, "weights of the model"),
        (_other_judge, "contents of the detector"),
        (_other_images, "forget images"),
    ],
)
def test_a_row_of_what_lay_in_the_same_place_before_is_refused(change, said, made, tmp_path):
    change(tmp_path)
    with pytest.raises(VduError, match=rf"short-bright-0\.json was made with other {said}: remove it, or give another"):
        run_suite(_short(made), tmp_path / "results", None, 1, print)


@pytest.mark.parametrize("method", ["gone", "retrain"])
def test_no_row_beside_those_asked_for_is_of_another_model_or_number_of_samples(method, made, tmp_path):
    rows, folder = MadeRows(_short(made), tmp_path / "results"), tmp_path / "results" / "mine"
    record = json.loads((folder / "short-bright-0.json").read_text())
    if method == "retrain":
        del record["asked"]["arm"]
    beside = folder / f"{method}-dark-0.json"
    beside.write_text(json.dumps(record))
    rows.refuse_others()  # of a method that the suite no longer has
    for name, value in (("samples", 2000), ("model", "my-model-v2"), ("sampler_steps", 3)):
        beside.write_text(json.dumps(record | {"asked": record["asked"] | {name: value}}))
        with pytest.raises(
            VduError, match=f"{method}-dark-0.json was made with other {name.replace('_', ' ')}: remove"
        ):
            rows.refuse_others()
    beside.write_text(json.dumps({"status": "failed", "asked": {"samples": 2000}}))
    rows.refuse_others()  # it has no figures


def _run(file, monkeypatch, capsys):
    words = ("bench", "run", file, "--results", file.parent / "results", "--method", "short", "--method", "kept")
    return run_vdu(monkeypatch, capsys, *words)


def test_a_run_that_fails_is_a_row_with_its_reason_and_stops_no_other(suite, monkeypatch, capsys):  # noqa: F811
    whole = suite.read_text()
    suite.write_text(whole.replace('method = "ga"', 'method = "test_made_rows:BROKEN"'))
    said = _run(suite, monkeypatch, capsys)
    assert_refused(said, "mine: 1 of 2 runs failed (short bright seed 0 …): their rows say why, the same command makes")
    lines = said[1].splitlines()
    assert lines[1] == "[1/2] short bright seed 0: failed: RuntimeError: sizes do not match"
    assert lines[2].startswith("[2/2] kept bright seed 0: PUL ")
    record = json.loads((suite.parent / "results" / "mine" / "short-bright-0.json").read_text())
    assert (record["status"], record["reason"]) == ("failed", "RuntimeError: sizes do not match")
    assert "| short  | 0 " in render("mine", suite.parent / "results", "table")
    suite.write_text(whole)
    code, out, _ = _run(suite, monkeypatch, capsys)
    assert (code, out.splitlines()[0]) == (0, "mine: 1 runs to make")


def test_an_error_of_the_evaluation_names_its_run(suite, monkeypatch, capsys):  # noqa: F811
    suite.write_text(suite.read_text().replace("test_own_suite:brightness", "test_made_rows:tired"))
    said = _run(suite, monkeypatch, capsys)
    assert_refused(said, "mine: 2 of 2 runs failed")
    assert "[1/2] short bright seed 0: failed: test_made_rows:tired failed on 100 images (IndexError: " in said[1]


def test_a_run_that_another_process_made_meanwhile_is_left_as_it_is(suite, tmp_path):  # noqa: F811
    said, other = [], tmp_path / "results" / "mine" / "kept-bright-0.json"

    def say(line):
        said.append(line)
        if line.startswith("[1/2]"):
            other.write_text('{"row": {"method": "kept"}}')

    run_suite(read_suite(str(suite)).part(methods=["short", "kept"]), tmp_path / "results", None, 1, say)
    assert said[-1] == "kept bright seed 0: made meanwhile by another process"
    assert other.read_text() == '{"row": {"method": "kept"}}'
