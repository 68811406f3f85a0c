"""What forgetting costs, on the small shipped model with a few samples: the looks are not counted."""

import json
import mmap
import time
from dataclasses import replace

import pytest
import torch
from conftest import run_vdu

from vdu import VduError, unlearn
from vdu.bench import forgetting_cost
from vdu.bench.forgetting_cost import measure_cost, run_forgetting_cost
from vdu.bench.peak_memory import forget_peak, peak_bytes
from vdu.bench.rows import read_rows
from vdu.bench.suite import Arm, read_suite
from vdu.guard import Check
from vdu.loop import LoopResult
from vdu.methods import METHODS
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
def test_what_a_run_takes_is_what_it_takes_without_looks(number, suite):
    run = list(suite.runs())[number]
    started = time.process_time()
    row = measure_cost(suite, run, 32)
    with_looks = time.process_time() - started
    zoo = find_zoo_model("mnist-14")
    retain = zoo.retain(run.target) if number else None
    images = sorted(zoo.forget(run.target).glob("*.png"))
    settings = run.arm.settings | {"guard_every_steps": 0}
    started = time.process_time()
    alone = unlearn("mnist-14", images, run.arm.method, retain=retain, settings=settings, seed=run.seed)
    without = time.process_time() - started
    assert row["passes"] == alone.record["passes"] > 0
    assert (row["step"], row["ended"]) == (None, "all steps taken")
    assert row["pul"] == 0  # such a rate changes no sample
    assert abs(row["seconds"] - without) < abs(row["seconds"] - with_looks)


def test_the_first_look_that_finds_enough_gone_ends_it(suite, monkeypatch):
    monkeypatch.setattr(forgetting_cost, "WANTED_PUL_PERCENT", -50.0)
    row = measure_cost(suite, next(suite.runs()), 32)
    assert (row["step"], row["ended"]) == (1, "-50 % forgotten")
    assert row["pul"] == 0


class _Seen:
    forget_share = 0.2


@pytest.mark.parametrize(
    ("looks", "step", "pul"),
    [
        ([(2, 0.08, False, 1), (4, 0.01, False, 1), (6, 0.0, False, 1)], 4, 95.0),
        ([(2, 0.08, False, 1), (4, 0.0, True, 1)], None, 60.0),
        ([(2, 0.08, False, 1), (4, 1.0, True, 1), (4, 0.0, False, 0.5)], None, 60.0),
        ([(2, 1.0, True, 1)], None, None),
    ],
)
def test_only_a_sound_look_at_the_whole_way_counts(looks, step, pul):
    start = Check(0, 0.0, 0.1, 1.0, 0.0, 0.2, False)
    checks = [start, *(Check(s, share, 0.1, 1.0, 0.1, share, broken, way) for s, share, broken, way in looks)]
    outcome = forgetting_cost._outcome(_Seen, LoopResult(torch.nn.Identity(), 0, "why", [], checks), 0.01)
    assert (outcome["step"], outcome["pul"]) == (step, pul)
    assert outcome["ended"] == ("95 % forgotten" if step else "why")


def test_rows_of_one_seed_are_made_once_and_shown(suite, tmp_path, monkeypatch, capsys):
    said = []
    run_forgetting_cost(suite.part(targets=["8"]), tmp_path, 32, said.append)
    run_forgetting_cost(suite.part(targets=["8"]), tmp_path, 32, said.append)
    assert [line.split(":")[0] for line in said] == ["cost-few", "ascent 8", "replay 8", "cost-few"]
    rows = read_rows("cost-few", tmp_path)
    assert [(row["method"], row["target"], row["seed"]) for row in rows] == [("ascent", "8", 0), ("replay", "8", 0)]
    assert all(row["ended"] == "all steps taken" and row["memory_mb"] > 0 for row in rows)
    code, out, err = run_vdu(monkeypatch, capsys, "bench", "show", "cost-few", "--results", tmp_path)
    assert code == 0, err
    assert out.count("all steps taken") == 2
    with pytest.raises(VduError, match="other settings or samples"):
        run_forgetting_cost(suite.part(targets=["8"]), tmp_path, 33, said.append)
    path = tmp_path / "cost-few" / "ascent-8.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"settings": record["settings"] | {"ema_decay": 0.123}}))
    with pytest.raises(VduError, match="other settings or samples"):
        run_forgetting_cost(suite.part(targets=["8"]), tmp_path, 32, said.append)
    path.write_text(json.dumps(record | {"model": "mnist"}))
    with pytest.raises(VduError, match="another model"):
        run_forgetting_cost(suite.part(targets=["8"]), tmp_path, 32, said.append)
    path.write_text(json.dumps({key: value for key, value in record.items() if key != "settings"}))
    run_forgetting_cost(suite.part(targets=["8"]), tmp_path, 32, said.append)  # of a time when rows said less
    assert said[-1] == "cost-few: 0 runs to make"


def test_a_refused_run_is_a_row_and_does_not_stop_the_others(suite, tmp_path):
    said = []
    run_forgetting_cost(suite.part(targets=["8"]), tmp_path, 8, said.append)  # so few that none of them is an 8
    row = json.loads((tmp_path / "cost-few" / "replay-8.json").read_text())["row"]
    assert row["ended"] == "refused: of 8 samples of mnist-14 none is of class 8: nothing can go"
    assert row["seconds"] is row["step"] is None
    assert len(said) == 3
    again = suite.part(targets=["8"], methods=["replay"])
    run_forgetting_cost(again, tmp_path, 8, said.append)  # what lacked may be there now
    assert said[3] == "cost-few: 1 runs to make"


def broken(settings, preparation, network):
    raise RuntimeError("sizes do not\nmatch")


BROKEN = replace(METHODS["ga"], name="broken", build=broken)


def test_a_run_that_breaks_is_a_row_too_and_is_made_again(suite, tmp_path):
    said, arm = [], Arm(method="test_forgetting_cost:BROKEN")
    alone = suite.model_copy(update={"methods": {"broken": arm}, "targets": ["3"]})
    run_forgetting_cost(alone, tmp_path, 8, said.append)
    path = tmp_path / "cost-few" / "broken-3.json"
    assert json.loads(path.read_text())["row"]["ended"] == "failed: RuntimeError: sizes do not match"
    assert said[0] == "cost-few: 1 runs to make"
    assert not forgetting_cost._is_made(path, {})


def test_ratios_are_to_the_method_that_arrives_with_the_fewest_passes_on_the_same_target(tmp_path):
    arrived = {"step": 2, "seconds": 4.0, "passes": 10, "memory_mb": 0.0, "seed": 0, "ended": "gone"}
    made = [
        {"method": "a", "target": "1", **arrived},
        {"method": "b", "target": "1", **arrived, "seconds": 2.0, "passes": 5},
        {"method": "c", "target": "1", **arrived, "step": None},
        {"method": "b", "target": "2", **arrived},
        {"method": "a", "target": "3", **arrived, "step": None},
    ]
    (tmp_path / "cost-x").mkdir()
    for number, row in enumerate(made):
        (tmp_path / "cost-x" / f"{number}.json").write_text(json.dumps({"row": row}))
    rows = {(r["method"], r["target"]): (r["seconds_ratio"], r["passes_ratio"]) for r in read_rows("cost-x", tmp_path)}
    nothing = (None, None)
    assert rows[("a", "1")] == (2, 2)
    assert rows[("b", "1")] == rows[("b", "2")] == (1, 1)
    assert rows[("c", "1")] == rows[("a", "3")] == nothing


def test_a_peak_is_forgotten():
    with mmap.mmap(-1, 200_000_000) as held:  # goes back to the system for certain; what an allocator frees may not
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
    peak = peak_bytes()
    if not forget_peak():
        pytest.skip("this system keeps a process's peak")
    assert peak - peak_bytes() > 100_000_000


def test_what_cannot_be_measured_is_refused(suite, tmp_path, monkeypatch, capsys):
    code, _, err = run_vdu(monkeypatch, capsys, "bench", "cost", "mnist-14", "--target", "2", "--results", tmp_path)
    assert code == 2
    assert "no target '2' in suite mnist-14" in err
    for name, said in (("emoji-styles", "has no PUL"), ("mnist-checkpoints", "posteriors of checkpoints")):
        code, _, err = run_vdu(monkeypatch, capsys, "bench", "cost", name, "--results", tmp_path)
        assert code == 2
        assert said in err
    code, _, err = run_vdu(monkeypatch, capsys, "bench", "show", "cost-few", "--results", tmp_path)
    assert code == 2
    assert "`vdu bench cost few`" in err
