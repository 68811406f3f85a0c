"""The zoo's detectors: both networks, their augmentation, and folders that hold what was measured."""

import json

import pytest
import torch
from safetensors.torch import load_file

from vdu import VduError
from vdu.corpora import Corpus
from vdu.detector.classifier import load_classifier, predict, save_classifier
from vdu.model_zoo import find_zoo_model
from vdu.training.augmentation import mirrored, moved_each, moved_together
from vdu.training.classifier import ClassifierSettings, train_classifier
from vdu.training.recipe import read_recipe


def _corpus(count, seed=0):
    """Dark and bright pictures with noise."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 100, (count, 3, 16, 16), generator=g) + 150 * labels[:, None, None, None]
    return Corpus(images.byte(), labels, ("dark", "bright"), "hash", "tiny", False, True)


@pytest.mark.parametrize("architecture", ["plain", "residual"])
@pytest.mark.parametrize("weights", ["fp32", "fp16"])
def test_a_folder_holds_what_was_measured(architecture, weights, tmp_path):
    settings = ClassifierSettings(architecture=architecture, width=4, epochs=10, weights=weights)
    test = _corpus(50, seed=1)
    model, card = train_classifier(_corpus(64), test, settings, batch_size=16)
    assert card.test_accuracy > 0.9
    save_classifier(model, card, tmp_path / "classifier")
    stored = load_file(tmp_path / "classifier" / "model.safetensors")
    assert stored["head.weight"].dtype == {"fp32": torch.float32, "fp16": torch.float16}[weights]
    loaded, again = load_classifier(tmp_path / "classifier")
    assert again == card
    assert loaded.head.weight.dtype == torch.float32
    probabilities, features = predict(loaded, test.images.float() / 127.5 - 1)
    assert (probabilities.argmax(1) == test.labels).double().mean() == card.test_accuracy
    assert float(probabilities.amax(1).quantile(0.05)) == card.threshold
    assert features.shape == (50, card.feature_dimensions)


def test_fewer_images_than_a_batch_are_one_batch():
    _, card = train_classifier(_corpus(20), _corpus(50, seed=1), ClassifierSettings(width=4, epochs=40))
    assert card.test_accuracy > 0.9


def test_the_shipped_folder_without_an_architecture_loads():
    folder = find_zoo_model("mnist").classifier
    assert "architecture" not in json.loads((folder / "config.json").read_text())
    model, card = load_classifier(folder)
    assert card.architecture == "plain"
    assert predict(model, torch.zeros(2, 1, 28, 28))[0].shape == (2, 10)


def test_a_folder_of_an_unknown_architecture_is_refused(tmp_path):
    model, card = train_classifier(_corpus(16), _corpus(4), ClassifierSettings(width=4, epochs=1), batch_size=16)
    save_classifier(model, card, tmp_path / "classifier")
    config = tmp_path / "classifier" / "config.json"
    config.write_text(config.read_text().replace("plain", "fancy"))
    with pytest.raises(VduError, match="not a vdu classifier folder"):
        load_classifier(tmp_path / "classifier")


def test_a_recipe_without_a_classifier_section_has_the_one_of_mnist():
    assert read_recipe("mnist").classifier == ClassifierSettings()
    assert read_recipe("cifar10").classifier.architecture == "residual"
    other = read_recipe("cifar10").model_copy(update={"classifier": ClassifierSettings()})
    assert other.sha256() == read_recipe("cifar10").sha256()


def test_each_image_is_mirrored_or_not():
    images = torch.arange(200 * 6).reshape(200, 1, 2, 3)
    out = mirrored(images, torch.Generator().manual_seed(0))
    same = (out == images).flatten(1).all(1)
    flipped = (out == images.flip(-1)).flatten(1).all(1)
    assert (same ^ flipped).all()
    assert 70 < same.sum() < 130


def test_each_image_moves_by_its_own_offset_and_reflects_at_the_edge():
    images = torch.rand(100, 3, 10, 12)
    out = moved_each(images, torch.Generator().manual_seed(0), most=2)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), mode="reflect")
    seen = set()
    for number in range(100):
        offsets = [(i, j) for i in range(5) for j in range(5)]
        found = [o for o in offsets if torch.equal(out[number], padded[number, :, o[0] : o[0] + 10, o[1] : o[1] + 12])]
        assert len(found) == 1
        seen |= set(found)
    assert len(seen) > 20


def test_a_batch_moves_as_one():
    images = torch.rand(3, 1, 6, 6)
    out = moved_together(images, torch.Generator().manual_seed(3))
    offsets = [(i, j) for i in range(-2, 3) for j in range(-2, 3)]
    assert sum(torch.equal(out, torch.roll(images, o, dims=(2, 3))) for o in offsets) == 1
