"""A suite about a model of one's own, its folder and judge, and with a method of one's own."""

import json
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from conftest import make_pipeline, run_vdu, runs_in_this_process  # noqa: F401 -- a fixture
from PIL import Image
from test_cli import assert_refused, brightness, make_workplace  # noqa: F401 -- the suite names it

from vdu import unlearn
from vdu.bench.made_rows import asked_of
from vdu.bench.suite import read_suite
from vdu.errors import VduError
from vdu.hashing import files_sha256
from vdu.methods import find_method
from vdu.objective.contract import Method, MethodSettings, Objective, Positive
from vdu.objective.plasticity import Ascent


class Settings(MethodSettings):
    push: Positive = 1.0


def build(settings, preparation, network):
    ascent = Ascent(preparation.backbone, preparation.forget)
    return Objective(0.0, lambda *given: settings.push * ascent(*given))


METHOD = Method("mine", Settings, build)
SHORT = {"steps": 1, "batch_size": 2, "guard_every_steps": 0}
SUITE = """
model = "MODEL"
detector = "test_own_suite:brightness"
targets = ["bright"]
seeds = [0]
samples = 100
sampler_steps = 2

[methods.short]
method = "ga"
settings = { steps = 1, batch_size = 2, guard_every_steps = 0 }

[methods.kept]
method = "finetune"
settings = { steps = 1, batch_size = 2, guard_every_steps = 0 }

[methods.mine]
method = "test_own_suite:METHOD"
settings = { steps = 1, batch_size = 2, guard_every_steps = 0, push = 0.5 }

[methods.paper]
method = "vdu-paper"
settings = { steps = 1, batch_size = 2, guard_every_steps = 0 }
"""
CONCEPT = 'concept = { template = "{target} style", samples_per_prompt = 1 }'


def narrow(images):
    """A judge with a column too few."""
    return torch.ones(len(images), 1)


narrow.class_names = ["dark", "bright"]


@pytest.fixture
def suite(tmp_path):
    """The file of a suite about a tiny model whose folder holds what it must."""
    (tmp_path / "own").mkdir()
    place = make_workplace(tmp_path / "own")
    (place / "model").rename(place / "pipeline")
    (place / "forget").mkdir()
    (place / "bad").rename(place / "forget" / "bright")
    (place / "forget" / "dark").mkdir()
    for i in range(4):
        Image.new("L", (8, 8), 10 * i).save(place / "forget" / "dark" / f"{i}.JPG", format="JPEG")
    file = tmp_path / "mine.toml"
    file.write_text(SUITE.replace("MODEL", str(place)))
    return file


@pytest.mark.usefixtures("runs_in_this_process", "few_samples")
def test_methods_are_compared_on_a_model_of_ones_own(suite, tmp_path, monkeypatch, capsys):
    code, _, err = run_vdu(monkeypatch, capsys, "bench", "run", suite, "--results", tmp_path / "results")
    assert code == 0, err
    files = {path.name: json.loads(path.read_text()) for path in (tmp_path / "results" / "mine").glob("*.json")}
    status = {name: files[f"{name}-bright-0.json"]["status"] for name in ("short", "kept", "mine", "paper")}
    assert status == {"short": "done", "kept": "done", "mine": "done", "paper": "refused"}
    assert files["mine-bright-0.json"]["unlearning"]["settings"]["push"] == 0.5
    made = files["kept-bright-0.json"]
    assert made["unlearning"]["model"] == "own"
    assert made["unlearning"]["forget"]["source"] == "own:own/forget/bright"
    assert made["unlearning"]["retain"]["images"] == 4
    assert made["evaluation"]["class_names"] == ["dark", "bright"]
    assert made["evaluation"]["distances_missing"] == "no reference was given"
    assert str(tmp_path) not in json.dumps(made["unlearning"])
    suite.write_text(suite.read_text().replace("test_own_suite:brightness", "test_cli:brightness"))
    said = run_vdu(monkeypatch, capsys, "bench", "run", suite, "--results", tmp_path / "results")
    assert_refused(said, "kept-bright-0.json was made with other detector: remove it")


@pytest.mark.usefixtures("runs_in_this_process")
def test_a_judge_that_cannot_look_ends_a_suite_before_any_run(suite, tmp_path, monkeypatch, capsys):
    suite.write_text(suite.read_text().replace("test_own_suite:brightness", "test_own_suite:narrow"))
    said = run_vdu(monkeypatch, capsys, "bench", "run", suite, "--results", tmp_path / "results")
    assert_refused(said, "test_own_suite:narrow was given 2 images and 2 class_names: it must return")
    assert not (tmp_path / "results").exists()


def test_what_a_suite_of_ones_own_lacks_is_said(suite, tmp_path):
    text = suite.read_text()
    for change, said in (
        ((str(tmp_path / "own"), "mnits"), "needs the model 'mnits', which is not there"),
        (('detector = "test_own_suite:brightness"\n', ""), "has no classifier/: give detector"),
        ((str(tmp_path / "own"), "mnist"), "mnist brings its own detector and reference"),
        (('["bright"]', '["brite"]'), "own knows no class 'brite': did you mean 'bright'"),
        (("samples = 100", CONCEPT), "a table \\[concept\\] is for shipped models only, not for a folder"),
    ):
        suite.write_text(text.replace(*change))
        with pytest.raises(VduError, match=said):
            read_suite(str(suite))


def test_a_method_of_ones_own_is_named_by_its_module():
    assert find_method("test_own_suite:METHOD").name == "mine"
    for name in ("test_own_suite:SUITE", "test_own_suite:NONE", ":METHOD", "nowhere_at_all:METHOD"):
        with pytest.raises(VduError, match="give an importable module:METHOD"):
            find_method(name)


def test_an_own_method_that_has_changed_does_not_pass_for_what_was_made(suite):
    read = read_suite(str(suite))
    asked = {run.label: asked_of(read, run) for run in read.runs()}
    assert "source of the method" not in asked["kept"]
    assert asked["mine"]["source of the method"] == files_sha256([Path(__file__)])


@pytest.mark.parametrize(
    ("term", "said"),
    [
        (lambda *_: torch.zeros(()), "loss does not depend on the network"),
        (lambda network, *_: torch.stack([p.sum() for p in network.parameters()][:2]), r"loss has the shape \(2,\)"),
    ],
)
def test_a_term_that_is_no_loss_is_named(term, said, forget):
    method = replace(METHOD, build=lambda *_: Objective(0.0, term))
    with pytest.raises(VduError, match=said):
        unlearn(make_pipeline(), forget, method, settings=SHORT)


def test_an_own_method_may_be_given_as_it_is_and_must_keep_to_what_methods_are(forget):
    result = unlearn(make_pipeline(), forget, METHOD, settings=SHORT)
    assert result.record["method"] == "mine"
    with pytest.raises(VduError, match="build of method mine returned a NoneType"):
        unlearn(make_pipeline(), forget, replace(METHOD, build=lambda *_: None), settings=SHORT)

    class Wishful(Settings):
        needs: ClassVar[tuple[str, ...]] = ("forget", "retains")

    with pytest.raises(VduError, match="needs 'retains', which nothing gives: did you mean 'retain'"):
        unlearn(make_pipeline(), forget, replace(METHOD, settings=Wishful))
