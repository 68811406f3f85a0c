"""A zoo folder from a finished run: images are shipped only where the corpus may be passed on."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import vdu.training.zoo_build
from vdu.bench.given import require_inputs
from vdu.bench.runner import run_suite
from vdu.bench.suite import read_suite
from vdu.cli import main
from vdu.corpora import Corpus
from vdu.corpora.forget_folder import prepare_forget_folder
from vdu.errors import VduError
from vdu.evaluation.comparison import Sampler
from vdu.images.image_set import load_image_set
from vdu.model_zoo import find_zoo_model
from vdu.training.denoiser import train
from vdu.training.recipe import Recipe, read_recipe
from vdu.training.zoo_build import _forget_images, build_zoo_model
from vdu.weights.checkpoint import write_tensors

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture
def data(tmp_path):
    """A copy of "CIFAR-10" as class folders of noise."""
    g = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in CIFAR10:
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(2):
                pixels = g.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "data"


@pytest.fixture
def recipe():
    unet = {
        **{"sample_size": 16, "in_channels": 3, "out_channels": 3, "block_out_channels": [8, 8]},
        **{"layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 8},
        **{"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2},
    }
    settings = read_recipe("cifar10").training.model_dump() | {
        **{"cycle_steps": [4], "batch_size": 2, "posterior_checkpoints": 3, "posterior_from_fraction": 0.0},
    }
    classifier = {"architecture": "residual", "width": 2, "epochs": 1}
    noise = {"num_train_timesteps": 50}
    return Recipe(name="tiny", corpus="cifar10", unet=unet, noise=noise, training=settings, classifier=classifier)


def test_no_image_of_cifar_is_shipped(recipe, data, tmp_path, monkeypatch, capsys, runs_in_this_process):
    monkeypatch.setattr(vdu.training.zoo_build, "Sampler", lambda steps: Sampler(steps=2, count=4))
    fit = vdu.training.zoo_build.train_classifier
    monkeypatch.setattr(vdu.training.zoo_build, "train_classifier", lambda *a: fit(*a, batch_size=4))
    train(recipe, data, tmp_path / "run")
    _check_other_data(data, tmp_path)
    _check_passed_checkpoints(data, tmp_path)
    provenance = build_zoo_model(tmp_path / "run", data, tmp_path / "zoo" / "tiny")
    assert not list((tmp_path / "zoo").rglob("*.png"))
    assert provenance["classifier"]["architecture"] == "residual"
    assert provenance["classifier"]["shape"] == [3, 16, 16]

    monkeypatch.setattr("vdu.model_zoo.ZOO", tmp_path / "zoo")
    assert find_zoo_model("tiny").class_names == list(CIFAR10)
    command = find_zoo_model("tiny").forget_images.split(": ")[1]
    words = command.replace("DATA", str(data)).replace("NAME", "dog").replace("FORGET", str(tmp_path / "forget"))
    monkeypatch.setattr(sys, "argv", words.replace("--count 100", "--count 2").split())
    with pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code, capsys.readouterr().err
    assert len(load_image_set(tmp_path / "forget", (3, 16, 16))) == 2
    _check_own_images(data, tmp_path)


def _check_other_data(data, tmp_path):
    """What the run was trained on is what its judge, its forget images and its reference are to be made of."""
    other = tmp_path / "other-data"
    shutil.copytree(data, other)
    Image.new("RGB", (32, 32)).save(other / "train" / "dog" / "0.png")
    with pytest.raises(VduError, match=r"run was trained on other files than .*other-data holds"):
        build_zoo_model(tmp_path / "run", other, tmp_path / "zoo" / "tiny")
    assert not (tmp_path / "zoo" / "tiny").exists()


def _check_passed_checkpoints(data, tmp_path):
    """Of a recipe that went on from a shorter one, the checkpoints that are there count; none is no posterior."""
    folder = tmp_path / "passed"
    shutil.copytree(tmp_path / "run", folder)
    first, second, _ = sorted((folder / "checkpoints").iterdir())
    first.unlink()
    assert build_zoo_model(folder, data, tmp_path / "zoo-of-two")["posterior_checkpoints"] == 2
    second.unlink()
    with pytest.raises(VduError, match="needs at least 2 checkpoints, 1 given"):
        build_zoo_model(folder, data, tmp_path / "zoo-of-one")


def _check_own_images(data, tmp_path):
    """A suite of a model without shipped images says how to make them, and runs on the user's; checkpoints likewise."""
    suite = tmp_path / "tiny-suite.toml"
    suite.write_text(
        'model = "tiny"\ntargets = ["dog"]\nseeds = [0]\nsamples = 100\nsampler_steps = 2\n'
        '[methods.finetune]\nmethod = "finetune"\nsettings = {steps = 1, batch_size = 2, guard_every_steps = 0}\n'
        '[methods."2 checkpoints"]\nmethod = "vdu-paper"\ncheckpoints = 2\n'
        "settings = {steps = 1, guard_every_steps = 0}\n"
    )
    with pytest.raises(VduError, match=r"takes 2 checkpoints, none are given: give --checkpoints RUN/checkpoints"):
        require_inputs(read_suite(str(suite)))
    checkpoints = tmp_path / "run" / "checkpoints"
    with pytest.raises(VduError, match=r"no forget images of class dog.*--data DATA --count 100.*--forget FORGET"):
        require_inputs(read_suite(str(suite), None, checkpoints))
    with pytest.raises(VduError, match="no image in"):
        require_inputs(read_suite(str(suite), tmp_path / "forget", checkpoints))
    prepare_forget_folder("cifar10", data, "dog", tmp_path / "dogs" / "dog", count=2, size=16)
    with pytest.raises(VduError, match=r"images to keep are those of all other classes.*dogs/airplane"):
        require_inputs(read_suite(str(suite), tmp_path / "dogs", checkpoints))
    prepare_forget_folder("cifar10", data, None, tmp_path / "by-class", count=2, size=16)
    assert {folder.name for folder in (tmp_path / "by-class").iterdir()} == set(CIFAR10)
    broken = next((tmp_path / "by-class" / "dog").glob("*.png"))
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VduError, match=r"cannot read the image .*by-class/dog/"):
        run_suite(read_suite(str(suite), tmp_path / "by-class", checkpoints), tmp_path / "results", None, 1, print)
    broken.write_bytes(whole)
    said = []
    other = tmp_path / "other"
    shutil.copytree(checkpoints, other)
    write_tensors(sorted(other.iterdir())[-1], {"conv_in.weight": torch.zeros(1)})
    with pytest.raises(VduError, match="checkpoint of another model"):
        run_suite(read_suite(str(suite), tmp_path / "by-class", other), tmp_path / "results", None, 1, print)
    assert not (tmp_path / "results").exists()
    run_suite(read_suite(str(suite), tmp_path / "by-class", checkpoints), tmp_path / "results", None, 1, said.append)
    posterior = json.loads((tmp_path / "results" / "tiny-suite" / "2-checkpoints-dog-0.json").read_text())
    assert posterior["unlearning"]["posterior"]["count"] == 2, said
    result = json.loads((tmp_path / "results" / "tiny-suite" / "finetune-dog-0.json").read_text())
    assert result["status"] == "done", said
    run_suite(read_suite(str(suite), tmp_path / "by-class", checkpoints), tmp_path / "results", None, 1, said.append)
    assert said[-1] == "tiny-suite: 0 runs to make"
    path = tmp_path / "results" / "tiny-suite" / "finetune-dog-0.json"
    path.write_text(json.dumps({"status": "refused", "reason": "its images lacked", "asked": result["asked"]}))
    run_suite(read_suite(str(suite), tmp_path / "by-class", checkpoints), tmp_path / "results", None, 1, said.append)
    assert json.loads(path.read_text())["status"] == "done", said
    suite.write_text(suite.read_text().replace("{steps = 1, batch_size = 2,", "{steps = 2, batch_size = 2,"))
    with pytest.raises(VduError, match=r"finetune-dog-0\.json was made with other settings: remove it"):
        run_suite(read_suite(str(suite), tmp_path / "by-class", checkpoints), tmp_path / "results", None, 1, print)
    assert (tmp_path / "results" / "tiny-suite" / "finetune-dog-0.png").is_file()
    assert result["unlearning"]["forget"]["source"] == "own:tiny/forget/dog"
    assert str(tmp_path) not in json.dumps(result)


def test_images_that_may_be_passed_on_are_shipped_by_class(tmp_path):
    images = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 1, 2, 2)
    corpus = Corpus(images, torch.tensor([1, 0, 1, 1]), ("a", "b"), "hash", "tiny", True, False)
    assert "training images of each class" in _forget_images(corpus, tmp_path / "forget")
    written = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.png"))
    assert written == ["forget/a/00001.png", *(f"forget/b/0000{i}.png" for i in (0, 2, 3))]


@pytest.mark.parametrize("written", [None, "{", '{"corpus": "mnist"}'])
def test_a_folder_that_is_no_run_is_refused(written, tmp_path):
    if written is not None:
        (tmp_path / "provenance.json").write_text(written)
    with pytest.raises(VduError, match=r"provenance\.json.*: finish `vdu train` into "):
        build_zoo_model(tmp_path, tmp_path, tmp_path / "out")
