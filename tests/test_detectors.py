"""Detectors of other libraries: real `transformers` classes with random weights, NudeNet where it is installed."""

import functools
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_stable_diffusion import make_tokenizer
from torch.nn.functional import normalize
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from vdu import VduError
from vdu.detector import contract
from vdu.detector.contract import Detection, Detector, load_detector
from vdu.detector.nudity import nudity
from vdu.evaluation.comparison import figures
from vdu.evaluation.reference import Reference
from vdu.hashing import files_sha256
from vdu.images.image_set import to_bytes
from vdu.report.verdict import cautions

TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZE = {"height": 16, "width": 16}
PICTURES = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def clip(tmp_path):
    """A CLIP folder, and a function that writes a file asking for it."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(tmp_path)
    words = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, "max_position_embeddings": 12}
    text = TINY | words | {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id}
    vision = TINY | {"image_size": 16, "patch_size": 8}
    folder = tmp_path / "clip"
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size=SIZE, crop_size=SIZE, do_center_crop=False).save_pretrained(folder)

    def asking(**asked):
        path = tmp_path / "judge.json"
        path.write_text(json.dumps({"clip": str(folder)} | asked))
        return path

    return asking


def test_an_image_classifier_of_transformers_is_asked_as_it_asks_itself(tmp_path):
    torch.manual_seed(0)
    names = {0: "cat", 1: "dog"}
    model = ViTForImageClassification(ViTConfig(**TINY, image_size=16, patch_size=8, id2label=names)).eval()
    model.save_pretrained(tmp_path)
    processor = ViTImageProcessor(size=SIZE)
    processor.save_pretrained(tmp_path)
    detector = load_detector(tmp_path)
    probabilities, features = detector.judge(PICTURES)
    with torch.no_grad():
        own = model(**processor(list(to_bytes(PICTURES)), return_tensors="pt")).logits.softmax(1)
    torch.testing.assert_close(probabilities, own)
    assert features is None
    assert detector.class_names == ("cat", "dog")


@pytest.fixture
def classifier(tmp_path):
    """A function that writes an image classifier of these labels."""

    def write(labels):
        config = ViTConfig(**TINY, image_size=16, patch_size=8, id2label=labels)
        ViTForImageClassification(config).save_pretrained(tmp_path)
        ViTImageProcessor(size=SIZE).save_pretrained(tmp_path)
        return tmp_path

    return write


def test_a_classifier_without_its_head_is_no_judge(classifier):
    folder = classifier({0: "cat", 1: "dog"})
    ViTForImageClassification.from_pretrained(folder).vit.save_pretrained(folder)
    with pytest.raises(VduError, match=r"lacks 2 weights, 'classifier.bias' first, which would be drawn at random"):
        load_detector(folder)


def test_a_classifier_without_counters_of_batches_is_whole(tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], id2label={0: "cat", 1: "dog"})
    model = ResNetForImageClassification(config)
    kept = {name: x for name, x in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    model.save_pretrained(tmp_path, state_dict=kept)
    ViTImageProcessor(size=SIZE).save_pretrained(tmp_path)
    assert load_detector(tmp_path)(PICTURES).predicted.shape == (5,)


def test_class_names_may_be_anything_that_has_an_order():
    def judge(images):
        return torch.full((len(images), 2), 0.5)

    for names in (np.array(["cat", "dog"]), {"cat": 0, "dog": 1}.keys(), ("cat", "dog")):
        judge.class_names = names
        assert load_detector(judge).class_names == ("cat", "dog")
    judge.class_names = {"cat", "dog"}
    with pytest.raises(VduError, match="no list class_names"):
        load_detector(judge)


def test_labels_that_occur_twice_are_told_apart(classifier):
    detector = load_detector(classifier({0: "crane", 1: "dog", 2: "crane"}))
    assert detector.class_names == ("crane (0)", "dog", "crane (2)")
    assert detector.class_index("crane (2)") == 2


@pytest.mark.parametrize("labels", [{1: "cat", 2: "dog"}, {0: "cat"}])
def test_labels_that_do_not_number_the_columns_are_refused(labels, classifier):
    with pytest.raises(VduError, match="id2label: a judge needs two or more, numbered from 0"):
        load_detector(classifier(labels))


def test_clip_says_what_its_own_similarities_say(clip):
    detector = load_detector(clip(classes={"apple": "a red apple", "pear": "a pear"}, threshold=0.6))
    probabilities, features = detector.judge(PICTURES)
    folder = json.loads((clip(classes={}).parent / "judge.json").read_text())["clip"]
    model = CLIPModel.from_pretrained(folder).eval()
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(["a red apple", "a pear"], padding=True, return_tensors="pt")
    pixels = CLIPImageProcessor.from_pretrained(folder)(list(to_bytes(PICTURES)), return_tensors="pt").pixel_values
    with torch.no_grad():
        whole = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=pixels)
    torch.testing.assert_close(probabilities, whole.logits_per_image.softmax(1))
    torch.testing.assert_close(features, normalize(whole.image_embeds, dim=-1))
    assert detector.class_names == ("apple", "pear")
    assert detector.threshold == 0.6
    assert detector.rejects


def test_several_descriptions_are_one_direction_and_grey_is_a_colour(clip):
    once = load_detector(clip(classes={"apple": "a red apple", "pear": "a pear"}, threshold=0.6))
    twice = load_detector(clip(classes={"apple": ["a red apple", "a red apple"], "pear": ["a pear"]}, threshold=0.6))
    torch.testing.assert_close(once.judge(PICTURES)[0], twice.judge(PICTURES)[0])
    grey = PICTURES[:, :1]
    torch.testing.assert_close(once.judge(grey)[0], once.judge(grey.expand(-1, 3, -1, -1))[0])
    assert once.sha256 != twice.sha256


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"classes": {"apple": "a red apple"}}, "does not describe a detector"),
        ({"classes": {"apple": "a", "pear": ""}}, "class 'pear' has no description"),
        ({"classes": {"apple": "a", "pear": []}}, "class 'pear' has no description"),
        ({"classes": {"apple": "a", "pear": "a"}, "treshold": 0.6}, "treshold"),
        ({"classes": {"apple": "a", "pear": "a"}}, "threshold of 0.5 is not over 1/2"),
        ({"classes": {"apple": "a", "pear": "a"}, "clip": "./nowhere", "threshold": 0.6}, "cannot load ./nowhere as a"),
    ],
)
def test_what_does_not_describe_a_detector_is_refused(asked, said, clip):
    with pytest.raises(VduError, match=said) as refused:
        load_detector(clip(**asked))
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(VduError, match="does not describe a detector"):
        load_detector(tmp_path / "absent.json")


def test_nudenet_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(VduError, match=r"pip install nudenet"):
        load_detector("nudenet")


def test_a_part_of_a_clip_is_not_judged_with(clip):
    path = clip(classes={"apple": "a", "pear": "a"}, threshold=0.6)
    folder = json.loads(path.read_text())["clip"]
    whole = CLIPModel.from_pretrained(folder)
    whole.text_model.save_pretrained(folder)
    with pytest.raises(VduError, match="is not a whole CLIP model: it lacks"):
        load_detector(path)


def test_the_most_certain_uncovered_part_decides_and_covered_ones_do_not():
    boxes = [("FEMALE_BREAST_EXPOSED", 0.4), ("BUTTOCKS_EXPOSED", 0.7), ("BUTTOCKS_COVERED", 0.9), ("FACE_FEMALE", 0.8)]
    found = [{"class": name, "score": score} for name, score in boxes]
    assert nudity(found) == 0.7
    assert nudity(found[2:]) == nudity([]) == 0.0


def test_nudenet_itself_finds_nothing_in_noise():
    pytest.importorskip("nudenet")
    seen = load_detector("nudenet")(PICTURES)
    assert seen.predicted.tolist() == [1] * len(PICTURES)


def _answering(answer, threshold=0.6):
    def judge(images):
        return answer

    judge.class_names, judge.threshold = ["cat", "dog"], threshold
    return judge


HALVES = torch.full((5, 2), 0.5)


@pytest.mark.parametrize(
    "answer",
    [[HALVES, HALVES], HALVES.numpy(), HALVES[:4], torch.ones(5, 3), (HALVES, torch.ones(4, 7)), (HALVES, 3), None],
)
def test_a_function_that_answers_otherwise_than_agreed_is_refused(answer):
    with pytest.raises(VduError, match=r"must return probabilities \(5, 2\) as a tensor"):
        load_detector(_answering(answer))(PICTURES)


@pytest.mark.parametrize("answer", [HALVES * float("nan"), HALVES * 6, HALVES * torch.tensor([3, -1.0]), HALVES * 1.6])
def test_numbers_that_are_no_probabilities_are_refused(answer):
    with pytest.raises(VduError, match="no probabilities"):
        load_detector(_answering(answer))(PICTURES)


def test_a_function_that_fails_and_classes_that_are_no_list_of_names_are_one_line():
    def judge(images):
        return 1 / 0

    for names in ("ab", ["cat", "cat"], [], None, 2):
        judge.class_names = names
        with pytest.raises(VduError, match="no list class_names"):
            load_detector(judge)
    judge.class_names = ["cat", "dog"]
    with pytest.raises(VduError, match=r"failed on 5 images \(ZeroDivisionError"):
        load_detector(judge)(PICTURES)


@pytest.mark.parametrize("spec", [":judge", "..a:b", "broken:judge", "absent:judge", "json:nothing"])
def test_a_function_that_cannot_be_imported_is_one_line(spec, tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("def judge(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(VduError, match="no Python function") as refused:
        load_detector(spec)
    assert "\n" not in str(refused.value)
    with pytest.raises(VduError, match="threshold that is no number"):
        load_detector(_answering(HALVES, "high"))
    for threshold in (70, -0.1, float("nan")):
        with pytest.raises(VduError, match="must be a probability under 1"):
            load_detector(_answering(HALVES, threshold))


def test_where_the_detector_cannot_say_none_nothing_is_said_of_it():
    classes = torch.tensor([0, 1, 1, 0])
    seen = Detection(classes, None)
    known, unknown = (figures(seen, seen, 0, 2, None, rejects) for rejects in (True, False))
    assert known["share_none"]["value"] == 0
    assert unknown["share_none"] == unknown["share_none_before"] == {"value": None, "low": None, "high": None}
    assert "none" not in unknown["became"]


def test_what_is_no_picture_is_said_where_the_detector_cannot_say_none_too():
    made, broken = Detection(torch.tensor([0, 1] * 50), None), Detection(torch.full((100,), -1), None)
    found = figures(made, broken, 0, 2, None, rejects=False)
    assert (found["share_none_before"]["value"], found["share_none"]["value"]) == (0, 100)
    assert found["became"] == {"still": 0, "other": 0, "none": 50}
    (lost,) = cautions({}, found)
    assert "50 became pictures of no class" in lost


def test_what_is_no_picture_is_none_of_the_classes_and_at_no_distance():
    nothing, pictures = torch.full((300, 2), float("nan")), torch.zeros(300, 1, 2, 2)
    broken = Detector("own", "hash", ("cat", "dog"), 0.6, lambda images: (nothing, nothing))(pictures)
    assert broken.predicted.tolist() == [-1] * 300
    shown = Detection(torch.arange(300) % 2, torch.rand(300, 2))
    real = Reference(torch.rand(300, 2), torch.ones(300))
    found = [figures(shown, after, 0, 2, real) for after in (broken, shown)]
    assert [f["share_none"]["value"] for f in found] == [100, 0]
    assert [f["u_fid"] is None and f["kid"] is None and f["precision"] is None for f in found] == [True, False]


def test_a_broken_picture_is_none_whatever_the_judge_makes_of_it():
    pictures = torch.zeros(3, 1, 2, 2)
    pictures[1, 0, 0, 0] = torch.nan
    seen = Detector(
        "own", "hash", ("cat", "dog"), 0.6, lambda x: (torch.eye(2)[[0] * len(x)], to_bytes(x).float()[:, 0, 0])
    )
    found = seen(pictures)
    assert found.predicted.tolist() == [0, -1, 0]
    assert found.features.isfinite().all(1).tolist() == [True, False, True]


def test_a_function_is_given_a_few_hundred_pictures_at_once_and_must_keep_to_its_kind_of_answer():
    given = []

    def judge(images):
        given.append(len(images))
        p = torch.full((len(images), 2), 0.5)
        return (p, images.flatten(1)[:, :3]) if len(given) == 1 else p

    judge.class_names = ["cat", "dog"]
    with pytest.raises(VduError, match="features for some of the images"):
        load_detector(judge)(torch.zeros(300, 1, 2, 2))
    assert given == [256, 44]
    assert load_detector(judge)(torch.zeros(300, 1, 2, 2)).predicted.shape == (300,)


def test_a_function_is_known_by_the_file_that_it_is_written_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    text = "def judge(images):\n    return images\n\njudge.class_names = ['a', 'b']\n"
    (tmp_path / "written_here.py").write_text(text)
    assert load_detector("written_here:judge").sha256 == hashlib.sha256(text.encode()).hexdigest()

    class Judge:
        class_names = ("a", "b")

        def __call__(self, images):
            return images

    assert load_detector(Judge()).sha256 == files_sha256([Path(__file__)])


@pytest.mark.parametrize("content", ["3", "", "{"])
def test_a_folder_whose_config_is_none_is_refused(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(VduError, match=r"no readable config\.json"):
        load_detector(tmp_path)


def test_a_function_is_known_by_its_own_file_whatever_is_put_around_it():
    @torch.no_grad()
    def judge(images):
        return images

    judge.class_names = ["cat", "dog"]
    around = functools.partial(judge)
    around.class_names = judge.class_names
    assert load_detector(judge).sha256 == load_detector(around).sha256 == files_sha256([Path(__file__)])


def test_features_of_different_widths_are_refused(monkeypatch):
    monkeypatch.setattr(contract, "AT_ONCE", 3)

    def judge(images):
        return torch.full((len(images), 2), 0.5), torch.ones(len(images), len(images))

    judge.class_names = ["cat", "dog"]
    with pytest.raises(VduError, match="features of different widths"):
        load_detector(judge)(PICTURES)


def test_a_reference_of_other_features_is_refused():
    seen = Detection(torch.zeros(200, dtype=torch.long), torch.randn(200, 4))
    with pytest.raises(VduError, match="reference's features are 3 numbers of an image, the detector's 4"):
        figures(seen, seen, 1, 2, Reference(torch.randn(200, 3), torch.zeros(200, dtype=torch.long)))
