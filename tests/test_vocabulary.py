"""The words that ask for given images: losses against a loop of typed prompts, rounds, and the command."""

import json

import pytest
import torch
from conftest import make_pipeline as make_ddpm
from conftest import run_vdu
from PIL import Image
from tiny_stable_diffusion import WORDS, make_pipeline, where_words_have_a_say

from vdu import VduError
from vdu.backbone import load_backbone
from vdu.seeding import generator
from vdu.text.vocabulary import (
    ROUNDS_OF_FEW,
    _noised_alike,
    asking_words,
    gains_on_some,
    likely_asking,
    typed_words,
    words_of,
)


@pytest.fixture
def backbone(tmp_path):
    return where_words_have_a_say(load_backbone(make_pipeline(tmp_path)))


@pytest.fixture
def x_0():
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def naive_gains(backbone, at, words):
    """Of each word ``(n,)``: one prompt and one noised image at a time."""

    def errors(text):
        c = backbone.condition([text])
        said = [backbone.predict_eps(backbone.network, at.x_t[i : i + 1], at.t[i : i + 1], c) for i in range(len(at.t))]
        return torch.stack([(eps[0] - at.eps[i]).pow(2).mean() for i, eps in enumerate(said)])

    with torch.no_grad():
        plain = errors(" ")  # the empty prompt, encoded after words were given a say
        return {word: plain - errors(word) for word in words}


def test_every_word_is_judged_by_what_the_network_makes_of_it_on_the_same_noise(backbone, x_0):
    words, _ = typed_words(backbone.tokenizers)
    found = asking_words(backbone, x_0, 5, rounds=((7, len(words)),))
    gains = naive_gains(backbone, _noised_alike(backbone, x_0, 7, generator(5, "words", 0)), words)
    assert {w.text for w in found} == set(words) >= set(WORDS)
    for word in found:
        assert word.gain == pytest.approx(float(gains[word.text].mean()), rel=1e-3, abs=1e-6)
        assert word.standard_error == pytest.approx(float(gains[word.text].std()) / 7**0.5, rel=1e-3, abs=1e-6)
    order = [w.gain for w in found]
    assert order == sorted(order, reverse=True)
    assert order[0] > order[-1]


def test_a_word_fits_some_images_by_the_best_tenth_of_its_gains(backbone, x_0):
    at = _noised_alike(backbone, x_0, 200, generator(5, "words", "some"))
    gains = naive_gains(backbone, at, ["red", "pear"])
    wanted = [float(gains[word].sort().values[-20:].mean()) for word in ("red", "pear")]
    assert gains_on_some(backbone, x_0, ["red", "pear"], 5).tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_the_best_of_a_round_are_judged_anew_on_noise_they_have_not_met(backbone, x_0):
    passes, told = backbone.passes, []
    words, _ = typed_words(backbone.tokenizers)
    found = asking_words(
        backbone, x_0, 5, rounds=((2, 4), (6, 3)), on_round=lambda count, images: told.append((count, images))
    )
    first = naive_gains(backbone, _noised_alike(backbone, x_0, 2, generator(5, "words", 0)), words)
    stayed = sorted(words, key=lambda word: -float(first[word].mean()))[:4]
    again = naive_gains(backbone, _noised_alike(backbone, x_0, 6, generator(5, "words", 1)), stayed)
    assert [w.text for w in found] == sorted(stayed, key=lambda word: -float(again[word].mean()))[:3]
    assert told == [(len(words), 2), (4, 6)]
    counted = 2 * (len(words) + 1) + 6 * 5
    assert backbone.passes - passes == 2 * counted  # the loops above ask for the same again


def test_the_noised_images_are_each_of_them_as_often_or_once_less_and_of_all_times(backbone, x_0):
    for seed in range(6):
        at = _noised_alike(backbone, x_0, 7, generator(seed, "words", 0))
        noise = backbone.add_noise(torch.zeros_like(at.eps), at.eps, at.t)
        signal = backbone.alpha_bar[at.t].sqrt().view(-1, 1, 1, 1)
        which = torch.cdist(((at.x_t - noise) / signal).flatten(1), x_0.flatten(1)).argmin(1)
        assert sorted(which.bincount(minlength=3).tolist()) == [2, 2, 3]
        assert (at.t * 7 // backbone.timesteps).tolist() == list(range(7))


def test_it_is_the_same_again_for_a_seed_and_refuses_a_model_without_text(backbone, x_0):
    one, two, other = (asking_words(backbone, x_0, seed, rounds=((3, 4),)) for seed in (1, 1, 2))
    assert one == two
    assert one != other
    with pytest.raises(VduError, match="takes no prompts"):
        asking_words(load_backbone(make_ddpm()), x_0, 0)


def test_the_words_of_prompts_are_each_there_once_without_marks():
    assert words_of(["A Red, apple!", "a pear (red)", "", "- don't"]) == ["a", "red", "apple", "pear", "-", "don't"]


def test_those_that_are_likely_to_ask_are_words_of_the_prompts_with_a_gain(backbone, x_0):
    texts = ["a red pear", "a blue apple"]
    all_words = asking_words(backbone, x_0, 5, words=words_of(texts), rounds=ROUNDS_OF_FEW)
    assert {word.text for word in all_words} == {"a", "red", "pear", "blue", "apple"}
    likely = [word.text for word in all_words if word.gain > 0]
    assert likely_asking(backbone, x_0, texts, 5, most=9) == likely
    assert likely_asking(backbone, x_0, texts, 5, most=1) == likely[:1]
    passes = backbone.passes
    assert likely_asking(backbone, x_0, ["", " "], 5, most=9) == likely_asking(backbone, x_0, texts, 5, most=0) == []
    assert backbone.passes == passes


def test_the_command_shows_the_words_and_writes_them(tmp_path, monkeypatch, capsys):
    make_pipeline(tmp_path).save_pretrained(tmp_path / "model")
    make_ddpm().save_pretrained(tmp_path / "wordless")
    (tmp_path / "forget").mkdir()
    for i in range(2):
        Image.new("RGB", (16, 16), (90 * i, 50, 200)).save(tmp_path / "forget" / f"{i}.png")
    out = tmp_path / "words.json"
    said = ["--forget", str(tmp_path / "forget"), "--precision", "fp32"]
    code, shown, _ = run_vdu(monkeypatch, capsys, "words", tmp_path / "model", *said, "--show", "3", "--out", out)
    assert code == 0
    written = json.loads(out.read_text())
    *rounds, first, second, third, _ = shown.splitlines()
    assert [line.split()[0] for line in (first, second, third)] == [word["text"] for word in written["words"][:3]]
    assert len(rounds) == 3
    assert {word["text"] for word in written["words"]} >= set(WORDS)
    assert written["forget"]["images"] == 2
    code, _, err = run_vdu(monkeypatch, capsys, "words", tmp_path / "wordless", *said)
    assert code == 2
    assert "takes no prompts" in err
