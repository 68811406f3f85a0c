"""The oracle: trained without a class, accepted only as such, and measured as a row of the suite."""

import json
import shutil

import pytest
from conftest import make_mnist_data, run_vdu
from PIL import Image

from vdu import VduError
from vdu.bench.rows import read_rows
from vdu.corpora import load_corpus
from vdu.model_zoo import find_zoo_model
from vdu.training.recipe import Recipe, read_recipe

SUITE = """
model = "mnist"
targets = ["3", "8"]
seeds = [0]
samples = 100
sampler_steps = 2
[methods.ga]
method = "ga"
"""


@pytest.fixture
def suite(tmp_path):
    path = tmp_path / "some.toml"
    path.write_text(SUITE)
    return path


@pytest.fixture
def oracles(tmp_path):
    """A run folder as `vdu train mnist --without 3` leaves it, but for its weights: the shipped ones."""
    zoo, run = find_zoo_model("mnist"), tmp_path / "oracles" / "3"
    shutil.copytree(zoo.pipeline, run / "pipeline")
    recipe = Recipe.model_validate(zoo.provenance["recipe"] | {"without": ["3"]})
    said = {"recipe": recipe.model_dump(), "data_sha256": zoo.provenance["data_sha256"]}
    (run / "provenance.json").write_text(json.dumps(said))
    return run.parent


def _oracle(suite, oracles, tmp_path, monkeypatch, capsys):
    options = ("--oracles", oracles, "--results", tmp_path / "results")
    return run_vdu(monkeypatch, capsys, "bench", "oracle", suite, *options)


def test_a_class_left_out_is_never_seen_and_the_rest_keeps_its_labels(tmp_path):
    whole = load_corpus("mnist", make_mnist_data(tmp_path))
    part = whole.without(["3", "8"])
    assert part.labels.tolist() == [label for label in whole.labels.tolist() if label not in (3, 8)]
    assert part.images.equal(whole.images[(whole.labels != 3) & (whole.labels != 8)])
    assert part.class_names == whole.class_names
    with pytest.raises(VduError, match="no class 'three'"):
        whole.without(["three"])
    with pytest.raises(VduError, match="at least one class"):
        whole.without(whole.class_names)


def test_an_oracle_is_another_recipe_that_can_be_compared():
    whole, oracle = read_recipe("mnist"), read_recipe("mnist", ["3"])
    assert oracle.sha256() != whole.sha256()
    assert oracle.comparable() == whole.comparable() != read_recipe("cifar10").comparable()


def test_the_oracles_row_fills_the_column_of_the_others(suite, oracles, tmp_path, monkeypatch, capsys):
    code, _, err = _oracle(suite, oracles, tmp_path, monkeypatch, capsys)
    assert (code, err) == (0, "")
    with Image.open(tmp_path / "results" / "some" / "retrain-3-0.png") as picture:
        assert picture.width > 16 * 28
    other = {"method": "ga", "target": "3", "seed": 0, "pul": 1.0, "u_fid": 9.0, "u_fid_original": 3.0}
    (tmp_path / "results" / "some" / "ga-3-0.json").write_text(json.dumps({"row": other}))
    rows = {row["method"]: row for row in read_rows("some", tmp_path / "results")}
    # The shipped weights have forgotten nothing, and are as far from the retained images as they are.
    assert rows["retrain"]["share_after"] == rows["retrain"]["share_before"]
    assert rows["retrain"]["u_fid"] == rows["retrain"]["u_fid_original"] == rows["ga"]["u_fid_oracle"]
    assert _oracle(suite, oracles, tmp_path, monkeypatch, capsys) == (0, "", "")  # made already
    suite.write_text(suite.read_text().replace("samples = ", "samples = 1"))
    code, _, err = _oracle(suite, oracles, tmp_path, monkeypatch, capsys)
    assert (code, "retrain-3-0.json was made with other samples" in err) == (2, True)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"without": []}, "without nothing"),
        ({"without": ["8"]}, "without ['8']"),
        ({"name": "x"}, "another recipe"),
        ({}, "other files"),
    ],
)
def test_a_model_that_is_not_the_oracle_is_refused(changed, said, suite, oracles, tmp_path, monkeypatch, capsys):
    file = oracles / "3" / "provenance.json"
    recipe = json.loads(file.read_text())["recipe"] | changed
    file.write_text(json.dumps({"recipe": recipe}))
    code, _, err = _oracle(suite, oracles, tmp_path, monkeypatch, capsys)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert said in err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("written", [None, "{", "{}", '{"recipe": 3}'])
def test_a_folder_that_is_no_run_is_refused(written, suite, oracles, tmp_path, monkeypatch, capsys):
    file = oracles / "3" / "provenance.json"
    file.unlink()
    if written is not None:
        file.write_text(written)
    code, _, err = _oracle(suite, oracles, tmp_path, monkeypatch, capsys)
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert "no provenance.json of a recipe" in err


def test_a_folder_without_oracles_is_refused(suite, tmp_path, monkeypatch, capsys):
    code, _, err = _oracle(suite, tmp_path, tmp_path, monkeypatch, capsys)
    assert code == 2
    assert "vdu train --without" in err


def test_a_recipe_with_text_has_no_oracle(tmp_path, monkeypatch, capsys):
    command = ("train", "emoji", "--data", tmp_path, "--out", tmp_path / "run", "--without", "noto")
    code, _, err = run_vdu(monkeypatch, capsys, *command)
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert "no oracle yet" in err
    assert not (tmp_path / "run").exists()
