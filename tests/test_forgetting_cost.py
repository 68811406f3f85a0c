"""What forgetting costs, on the small shipped model with a few samples: the looks are not counted."""

import json

import pytest
from conftest import run_vdu

from vdu import VduError, unlearn
from vdu.bench import forgetting_cost
from vdu.bench.forgetting_cost import measure_cost, run_forgetting_cost
from vdu.bench.suite import read_suite
from vdu.model_zoo import find_zoo_model

SUITE = """
model = "mnist-14"
targets = ["1", "8"]
seeds = [0, 1]
samples = 100
sampler_steps = 2
[methods.ascent]
method = "ga"
settings = { steps = 4, batch_size = 4, own_samples = 8, learning_rate = 1e-9 }
[methods.replay]
method = "finetune"
settings = { steps = 2, batch_size = 4, own_samples = 8, learning_rate = 1e-9 }
"""


@pytest.fixture
def suite(tmp_path):
    path = tmp_path / "few.toml"
    path.write_text(SUITE)
    return read_suite(str(path))


@pytest.mark.parametrize("number", [0, 2])  # forget images alone, and images to keep too
def test_the_passes_are_those_of_the_run_without_looks(number, suite):
    run = list(suite.runs())[number]
    row = measure_cost(suite, run, 32)
    zoo = find_zoo_model("mnist-14")
    retain = zoo.retain(run.target) if number else None
    images = sorted(zoo.forget(run.target).glob("*.png"))
    settings = run.arm.settings | {"guard_every_steps": 0}
    alone = unlearn("mnist-14", images, run.arm.method, retain=retain, settings=settings, seed=run.seed)
    assert row["passes"] == alone.record["passes"] > 0
    assert (row["step"], row["ended"]) == (None, "all steps taken")
    assert row["seconds"] > 0
    assert row["memory_bytes"] >= 0


def test_the_first_look_that_finds_enough_gone_ends_it(suite, monkeypatch):
    monkeypatch.setattr(forgetting_cost, "WANTED_PUL_PERCENT", -50.0)
    row = measure_cost(suite, next(suite.runs()), 32)
    assert (row["step"], row["ended"]) == (1, "-50 % forgotten")
    assert row["pul"] >= -50


def test_rows_of_one_seed_are_made_once_and_shown_beside_the_first_method(suite, tmp_path, monkeypatch, capsys):
    said = []
    run_forgetting_cost(suite, tmp_path, ["8"], 32, said.append)
    run_forgetting_cost(suite, tmp_path, ["8"], 32, said.append)
    assert len(said) == 2
    rows = {p.stem: json.loads(p.read_text())["row"] for p in (tmp_path / "cost-few").iterdir()}
    assert rows.keys() == {"ascent-8", "replay-8"}
    assert all(row["seed"] == 0 and row["seconds_ratio"] is None for row in rows.values())  # none reached the goal
    code, out, err = run_vdu(monkeypatch, capsys, "bench", "show", "cost-few", "--results", tmp_path)
    assert code == 0, err
    assert out.count("all steps taken") == 2


def test_ratios_are_to_the_first_method_where_both_arrived():
    first = {"step": 2, "seconds": 4.0, "passes": 10, "memory_bytes": 0}
    beside = forgetting_cost._beside_first(first | {"seconds": 2.0, "passes": 5}, first)
    assert (beside["seconds_ratio"], beside["passes_ratio"], beside["memory_ratio"]) == (0.5, 0.5, None)
    late = forgetting_cost._beside_first(first | {"step": None}, first)
    assert late["seconds_ratio"] is late["passes_ratio"] is None


def test_a_class_that_the_original_never_makes_is_refused(suite):
    with pytest.raises(VduError, match="of 2 samples of mnist-14 none is of class 1"):
        measure_cost(suite, next(suite.runs()), 2)


def test_what_cannot_be_measured_is_refused(suite, tmp_path, monkeypatch, capsys):
    with pytest.raises(VduError, match="no target '3' in suite few"):
        run_forgetting_cost(suite, tmp_path, ["3"], 32, print)
    code, _, err = run_vdu(monkeypatch, capsys, "bench", "cost", "emoji-styles", "--results", tmp_path)
    assert code == 2
    assert "has no PUL" in err
