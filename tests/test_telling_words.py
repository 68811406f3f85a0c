"""What the undesired is called: against a naive count, and where nothing tells."""

from itertools import product

import pytest
import torch
from tiny_stable_diffusion import make_pipeline

from vdu import unlearn
from vdu.prompts import Prompts
from vdu.seeding import generator
from vdu.text.telling_words import telling_words, those_that_tell

THINGS = ("cat", "apple", "red car", "house", "boat", "tree", "hand", "clock", "sun", "key")
STYLES = ("noto", "flat", "old")
TEXTS = [f"a {thing} in {style} style" for thing, style in product(THINGS, STYLES)]


def _c(texts, word, inside, outside):
    return torch.tensor([inside if word in text.split() else outside for text in texts])


def test_words_that_always_stand_together_are_told_together():
    assert telling_words(TEXTS, _c(TEXTS, "noto", 0.8, 0.1)) == "in noto style"
    assert telling_words([t.replace("noto", "Noto") for t in TEXTS], _c(TEXTS, "noto", 0.8, 0.1)) == "in noto style"


def test_of_words_in_the_same_samples_those_that_more_prompts_say_are_told():
    c, bare = _c(TEXTS, "noto", 0.8, 0.1), [f"a noto {thing}" for thing in THINGS]
    assert telling_words(TEXTS, c, prompts=TEXTS + bare) == "noto"
    assert telling_words(TEXTS, c, prompts=[*TEXTS, "the flat style", "painted in style"]) == "in noto style"


def test_a_long_row_is_told_whole_and_without_the_marks_around_it():
    c, named = _c(TEXTS, "noto", 0.8, 0.1), "a painting in the style of vincent van gogh"
    assert telling_words([t.replace("in noto style", f", {named}.") for t in TEXTS], c) == named
    mixed = [t.replace("noto style", "noto style," if i % 2 else "(noto  style)") for i, t in enumerate(TEXTS)]
    assert telling_words(mixed, c) == "noto style"


def test_the_words_of_highest_z_are_told_and_not_their_neighbours_or_parts():
    g = torch.Generator().manual_seed(0)
    texts = [f"a {thing} {place}" for thing, place in product(THINGS, ("here", "there", "in rain", "at home"))] * 3
    c = (_c(texts, "rain", 0.8, 0.2) + 0.2 * torch.rand(len(texts), generator=g)).clamp(0, 1)

    def z(word):
        said = torch.tensor([f" {word} " in f" {text} " for text in texts])
        n = int(said.sum())
        return float((c[said].mean() - c[~said].mean()) / (c.std() * (1 / n + 1 / (len(c) - n)) ** 0.5))

    rows = {" ".join(t.split()[i:j]) for t in texts for i in range(4) for j in range(i + 1, 6)}
    rows = [row for row in rows if 8 <= sum(f" {row} " in f" {t} " for t in texts) < len(texts)]
    assert telling_words(texts, c) == max(rows, key=lambda row: (round(z(row), 6), len(row.split()))) == "in rain"


def _fluent(of_3d, of_flat):
    """Texts of four styles, two of which share a word, and c around what each of these two brings."""
    styles = ("noto", "fluent 3d", "fluent flat", "old")
    texts = [f"a {thing} in {style} style" for thing, style in product(THINGS, styles)] * 2
    level = torch.tensor([of_3d if "3d" in t else of_flat if "flat" in t else 0.1 for t in texts])
    return texts, (level + 0.1 * torch.randn(len(texts), generator=torch.Generator().manual_seed(0))).clamp(0, 1)


def test_of_two_that_share_words_the_one_that_brings_it_is_told():
    assert telling_words(*_fluent(0.8, 0.55)) == "in fluent 3d style"
    assert telling_words(*_fluent(0.8, 0.8)) == "in fluent"


def test_tried_words_bear_witness_to_which_of_two_that_look_alike_it_is():
    texts, c = _fluent(0.72, 0.57)
    assert telling_words(texts, c) == "in fluent"
    tried = ["3d", "fluent", "old", "in", "style"] * 20

    def told(**levels):
        tried_c = torch.tensor([levels.get(word.replace("3", "three"), 0.3) for word in tried])
        return telling_words(texts, c, tried, tried_c)

    assert told(threed=0.9, fluent=0.55) == "in fluent 3d style"
    assert told(threed=0.6, fluent=0.6) == "in fluent"
    # Equal witnesses never make it longer, however high they are and however many of each; nor does a lone one.
    assert told(threed=0.95, fluent=0.95) == "in fluent"
    assert telling_words(texts, c, ["3d"] * 40 + ["fluent"] * 8, torch.full((48,), 0.95)) == "in fluent"
    assert telling_words(texts, c, ["3d"] * 40, torch.full((40,), 0.95)) == "in fluent"


def test_words_that_bring_nothing_themselves_are_no_witnesses():
    things = [f"{kind} {what}" for kind, what in product(THINGS, ("face", "thing"))]
    texts = [f"a {thing} in {style} style" for thing, style in product(things, STYLES)]
    g = torch.Generator().manual_seed(0)
    c = (_c(texts, "noto", 0.8, 0.1) + 0.2 * torch.randn(len(texts), generator=g)).clamp(0, 1)
    tried = ["face", "in", "style"] * 12
    assert telling_words(texts, c, tried, torch.tensor([0.45, 0.1, 0.1] * 12)) == "in noto style"


@pytest.mark.parametrize("levels", [(0.98, 0.95, 0.02), (0.9, 0.75, 0.15)])
def test_a_row_is_not_made_longer_for_a_small_difference(levels):
    things = [f"{kind} face" for kind in THINGS] + [
        f"{kind} thing" for kind in (*THINGS, "one", "two", "six", "ten", "odd")
    ]
    texts = [f"a {thing} in {style} style" for thing, style in product(things, STYLES)]
    g, (faces, others, spread) = torch.Generator().manual_seed(0), levels
    level = torch.tensor([0.05 if "noto" not in t else faces if "face" in t else others for t in texts])
    assert telling_words(texts, (level + spread * torch.randn(len(texts), generator=g)).clamp(0, 1)) == "in noto style"


def test_a_row_is_made_longer_only_by_words_beside_it():
    texts = [
        f"a {colour} {thing} in {style} style" for colour, thing, style in product(("red", "blue"), THINGS, STYLES)
    ]
    c = torch.tensor([0.05 if "noto" not in t else 0.9 if "a red" in t else 0.65 for t in texts])
    assert telling_words(texts, c) == "in noto style"


@pytest.mark.parametrize(
    ("texts", "c"),
    [
        (TEXTS, _c(TEXTS, "noto", 0.35, 0.02)),  # the words bring too little of it
        (TEXTS[:21], _c(TEXTS[:21], "noto", 0.9, 0.0)),  # seven prompts may be an accident
        (TEXTS[:3] * 9, _c(TEXTS[:3] * 9, "noto", 0.9, 0.0)),  # one prompt, however often
        (["a cat in noto style"] * 20, torch.full((20,), 0.9)),  # no prompt is without them
        (TEXTS, torch.full((30,), 0.9)),
        (TEXTS, torch.arange(30) % 2 / 1.0),  # as often with as without
        ([], torch.zeros(0)),
        ([""], torch.ones(1)),
    ],
)
def test_nothing_is_told_by_few_prompts_or_small_shares_or_where_all_are_alike(texts, c):
    assert telling_words(texts, c) is None


def test_of_tried_words_those_tell_that_bring_it_in_enough_prompts():
    texts = 3 * TEXTS + [f"a {word} {thing}" for word in ("face", "nose", "ear") for thing in THINGS] + ["a chin x"] * 9
    level = {"face": 0.9, "nose": 0.7, "ear": 0.2, "chin": 0.9}
    c = torch.tensor([next((v for word, v in level.items() if word in t.split()), 0.05) for t in texts])
    assert those_that_tell(("ear", "nose", "chin", "face"), texts, c) == ["face", "nose"]
    assert those_that_tell((), texts, c) == []


@pytest.mark.parametrize(("level", "others", "told"), [(0.3, 0.03, True), (0.3, 0.06, False), (0.5, 0.2, True)])
def test_a_tried_word_brings_much_or_many_times_what_the_others_do(level, others, told):
    texts = 3 * TEXTS + [f"a face {thing}" for thing in THINGS]
    assert those_that_tell(("face",), texts, _c(texts, "face", level, others)) == ["face"] * told


@pytest.mark.usefixtures("few_samples")
def test_a_run_says_the_words_that_it_found(tmp_path, monkeypatch):
    monkeypatch.setattr("vdu.text.asking.telling_words", lambda *_: "red")
    prompts, forget = (
        Prompts(("a pear", "a blue apple", "a red apple")),
        torch.rand(3, 3, 16, 16, generator=generator(0, "test")) * 2 - 1,
    )
    few = {"steps": 1, "guard_every_steps": 0, "batch_size": 2, "own_samples": 8, "score_steps": 1}
    for steps, words in ((1, ["red"]), (0, [])):
        settings = few | {"inversion_steps": steps}
        result = unlearn(make_pipeline(tmp_path), forget, settings=settings, prompts=prompts)
        assert result.record["words_found"] == words
        assert ("“red”" in result.report(tmp_path / f"{steps}.html").read_text()) == bool(words)
