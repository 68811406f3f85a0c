"""A zoo folder from a finished run: images are shipped only where the corpus may be passed on."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

import vdu.zoo_build
from vdu.cli import main
from vdu.corpora import Corpus
from vdu.evaluation import Sampler
from vdu.image_set import load_image_set
from vdu.model_zoo import find_zoo_model
from vdu.training import Recipe, read_recipe, train
from vdu.zoo_build import _forget_images, build_zoo_model

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
        **{"cycle_steps": [4], "batch_size": 2, "posterior_checkpoints": 2, "posterior_from_fraction": 0.0},
    }
    classifier = {"architecture": "residual", "width": 2, "epochs": 1}
    noise = {"num_train_timesteps": 50}
    return Recipe(name="tiny", corpus="cifar10", unet=unet, noise=noise, training=settings, classifier=classifier)


def test_no_image_of_cifar_is_shipped(recipe, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(vdu.zoo_build, "Sampler", lambda steps: Sampler(steps=2, count=4))
    fit = vdu.zoo_build.train_classifier
    monkeypatch.setattr(vdu.zoo_build, "train_classifier", lambda *a: fit(*a, batch_size=4))
    train(recipe, data, tmp_path / "run")
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


def test_images_that_may_be_passed_on_are_shipped_by_class(tmp_path):
    images = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 1, 2, 2)
    corpus = Corpus(images, torch.tensor([1, 0, 1, 1]), ("a", "b"), "hash", "tiny", True, False)
    assert "training images of each class" in _forget_images(corpus, tmp_path / "forget")
    written = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.png"))
    assert written == ["forget/a/00001.png", *(f"forget/b/0000{i}.png" for i in (0, 2, 3))]
