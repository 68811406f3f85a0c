"""Names of members of a kind: chosen by own samples, told by what is asked for with them."""

import pytest
import torch
from tiny_stable_diffusion import make_pipeline, where_words_have_a_say

from vdu.backbone import load_backbone
from vdu.diffusion.noised_bank import NoisedBank
from vdu.diffusion.noising import Clean
from vdu.preparation.banks import Banks
from vdu.preparation.early_banks import EarlyBanks
from vdu.preparation.members import (
    TRIES,
    _share_of_rest,
    asking_for,
    control_words,
    likely_members,
    members_that_tell,
    name_members,
)
from vdu.preparation.preparation import Preparation
from vdu.prompts import Prompts
from vdu.text.asking import Asking
from vdu.text.telling_words import compared

STYLES = ("noto", "flat")
THINGS = ("tiger", "lion", "hand", "car", "moon", "tree", "boat", "bone", "drum")
TEXTS = [f"a {thing} in {style} style" for style in STYLES for thing in THINGS]


def _c(*names, level=1.0, rest=0.0):
    """c of the samples of ``TEXTS``: ``level`` where one of ``names`` is said."""
    return torch.tensor([level if set(names) & set(text.split()) else rest for text in TEXTS])


def test_likely_members_are_words_of_few_prompts_that_mostly_bring_it():
    c = _c("tiger", "lion")
    assert likely_members(TEXTS, c) == ["lion", "tiger"]
    c[TEXTS.index("a lion in flat style")] = 0.2  # half of its samples
    assert likely_members(TEXTS, c) == ["tiger", "lion"]
    c[TEXTS.index("a lion in noto style")] = 0.7
    assert likely_members(TEXTS, c) == ["tiger"]
    assert likely_members(TEXTS, torch.ones(len(TEXTS))) == sorted(THINGS)  # not "a", "in", "noto", which many say
    assert likely_members(TEXTS, torch.zeros(len(TEXTS))) == []
    quoted = [text.replace("tiger", "'tiger'") for text in TEXTS]  # which nothing takes out of its prompts
    assert likely_members(quoted, _c("tiger", "lion")) == ["lion"]


def test_a_word_is_asked_for_alone_and_with_the_prompts_that_say_it_by_turns():
    asked = asking_for(["tiger", "lion"], TEXTS)
    assert len(asked) == 2 * TRIES
    assert asked[1:TRIES:2] == ["tiger"] * (TRIES // 2)
    said = [f"a tiger in {style} style" for style in STYLES]
    assert asked[:TRIES:2] == said * (TRIES // 4)
    assert asked[TRIES] == "a lion in noto style"


@pytest.mark.parametrize(("level", "told"), [(1.0, ["tiger"]), (0.8, ["tiger"]), (0.69, [])])
def test_what_it_brings_when_asked_for_decides(level, told):
    c_asked = torch.cat([torch.full((TRIES,), level), torch.zeros(TRIES)])
    assert members_that_tell(["tiger", "car"], c_asked, _c("tiger", "lion")) == told


def test_common_words_that_bring_it_least_are_what_a_name_is_compared_with():
    c = _c("tiger", "lion", rest=0.1)
    c[TEXTS.index("a boat in noto style")] = 0.0
    controls = control_words(TEXTS, c, ["tiger"])
    assert controls[0] == "boat"
    assert controls[-1] == "lion"
    assert sorted(controls) == sorted({word for text in TEXTS for word in text.split()} - {"tiger"})


def test_where_all_is_undesired_no_word_tells():
    others = torch.full((40,), 0.9)
    others[::4] = 0.2
    c_asked = torch.ones(TRIES)
    assert compared(c_asked.double(), others.double())[0] < 3
    assert members_that_tell(["tiger"], c_asked, others) == []


def test_new_pictures_are_judged_by_a_head_that_has_learned_c_from_the_own_samples(monkeypatch):
    def bank(level):  # what is undesired has a first feature of 1
        level = torch.as_tensor(level)
        features = torch.randn(6 * len(level), 4, generator=torch.Generator().manual_seed(len(level)))
        features[:, 0] = level.repeat(6)
        t = torch.linspace(0, 0.45, 6).repeat_interleave(len(level))
        return NoisedBank(len(level), 6, *[t] * 2, t, *[t] * 2, features, features)

    monkeypatch.setattr("vdu.preparation.discriminator.STEPS", 100)
    own = (torch.arange(40) % 5 == 0).float()
    new = (torch.arange(24) % 3 == 0).float()
    c = EarlyBanks(Banks(None, 0, "fp32")).judge(bank(new), own, forget=bank(torch.ones(10)), own=bank(own))
    assert c.shape == (24,)
    assert float(c[new == 1].min()) > 0.5 > float(c[new == 0].max())


NAMES = ("cat", "fox", "cup", "jar", "pen", "hat", "map", "nut", "oak", "ink", "urn", "sky", "elm", "bee")
KIND = ("cat", "fox", "pen", "hat")
NEUTRAL = tuple(f"a {name} {colour}" for colour in ("red", "blue") for name in NAMES)


@pytest.fixture
def backbone(tmp_path):
    return where_words_have_a_say(load_backbone(make_pipeline(tmp_path), Prompts(NEUTRAL, ("",))))


def _says(texts, *names):
    return torch.tensor([float(bool(set(names) & set((text or "").split()))) for text in texts])


def test_words_that_only_chance_chose_are_found_out_and_what_says_a_name_counts_as_sought(backbone, monkeypatch):
    asking = Asking(backbone, found=backbone.condition(["red", "apple", "pear"]))
    prompts = asking.of_own(64)
    of = {number: text for text, number in backbone._number.items()}
    texts = [of[number] for number in prompts.sampled.tolist()]
    first = _says(texts, *KIND, "cup", "jar")  # by chance pictures of cups and jars look like one
    second, found, shares = _says(texts, *KIND), [], []

    def judge(asked, c):  # a head that has learned the first c takes new cups for one, too, but no new jars
        return _says(asked, *KIND, *(["cup"] if torch.equal(c, first) else []))

    def again(*, sought, share):
        found.append(sought)
        shares.append(share)
        return second

    def gains(words):  # cups fit some forget images by chance; hats do not
        return _says(words, *KIND, "cup") + 0.1 * _says(words, "map")

    tools = {"ask": list, "judge": judge, "again": again, "gains": gains}
    named = name_members(asking, prompts, first, None, **tools)
    assert sorted(named.words) == sorted(KIND)
    assert named.c is second
    assert named.sought is found[0]
    said = _says(texts, *KIND, "cup").bool()
    assert torch.equal(named.sought, prompts.by_found | said)
    monkeypatch.setattr(asking, "telling_tried", lambda *_: ["fox"])
    beside = name_members(asking, prompts, first, 0.3, **tools)
    assert beside.words[0] == "fox"
    assert sorted(beside.words) == sorted(KIND)
    assert torch.equal(beside.sought, named.sought)
    # Those that say a name take their part of the share with them.
    unsought, rest = int((~prompts.sought).sum()), int((~named.sought).sum())
    left = 0.3 * unsought - float(first[named.sought & ~prompts.sought].sum())
    assert shares == [None, pytest.approx(max(1, left) / rest)]
    monkeypatch.undo()
    hidden = tools | {"again": pytest.fail}
    pair = _says(texts, *KIND[:2])
    assert name_members(asking, prompts, pair, None, **hidden | {"ask": pytest.fail}) is None
    assert name_members(asking, prompts, torch.zeros(64), None, **hidden | {"ask": pytest.fail}) is None
    assert name_members(asking, prompts, first, None, **hidden | {"judge": lambda asked, _: _says(asked)}) is None
    assert name_members(asking, prompts, first, None, **hidden | {"gains": lambda words: _says(words, "map")}) is None
    monkeypatch.setattr("vdu.preparation.members.CONTROLS", 0)
    assert name_members(asking, prompts, first, None, **hidden | {"gains": pytest.fail}) is None
    monkeypatch.undo()
    # Two names are no kind, at first or when c was made anew.
    for c_of_new, anew in (
        (lambda *_: ("cat", "fox"), pytest.fail),
        (lambda c: KIND if c is first else KIND[:2], again),
    ):
        few = tools | {"judge": lambda asked, c, of=c_of_new: _says(asked, *of(c)), "again": anew}
        assert name_members(asking, prompts, first, None, **few) is None


def test_named_members_are_what_a_run_is_told(backbone, monkeypatch):
    x_0 = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    few = {"own_count": 64, "score_steps": 1, "inversion_steps": 1, "own_sampler_steps": 1}
    preparation = Preparation(backbone, Clean(x_0, torch.zeros(3, dtype=torch.long)), 0, **few)
    asked, rounds, samples_of = [], [], Preparation.samples_of

    def c_where(forget, judged, seed, *, share, sought, made_of):
        rounds.append(sought)
        of, prompts = {number: text for text, number in backbone._number.items()}, preparation.own_prompts
        seen = _says([of.get(number) for number in prompts.sampled.tolist()], *KIND)
        return seen * ~prompts.sought * (1 - 0.1 * len(rounds))

    def samples(self, texts, count):
        asked.extend(texts)
        return samples_of(self, texts, count)

    monkeypatch.setattr("vdu.preparation.preparation.responsibilities", c_where)
    monkeypatch.setattr("vdu.preparation.early_banks.EarlyBanks.judge", lambda *_, **__: _says(asked, *KIND))
    monkeypatch.setattr(Preparation, "samples_of", samples)
    monkeypatch.setattr("vdu.preparation.preparation.gains_on_some", lambda _, x, words, **__: _says(words, *KIND))
    c = preparation.responsibilities
    assert float(c.max()) == pytest.approx(0.8)  # of the second round
    assert len(asked) == len(KIND) * TRIES
    assert torch.equal(rounds[0], preparation.own_prompts.sought)
    assert torch.equal(rounds[1], preparation.sought)
    assert int(rounds[1].sum()) > int(rounds[0].sum())
    assert sorted(preparation.told_words) == sorted(preparation.found_words) == sorted(KIND)
    assert preparation.share == float(c[~preparation.sought].mean())
    assert torch.equal(preparation.taught_prompts.sought, preparation.sought)
    assert preparation.closed_form is not None


def test_the_share_of_the_rest_is_what_is_not_sought_any_more():
    c = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.5, 0.5, 0.0, 0.0])
    sought = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0]).bool()
    told = torch.tensor([1, 0, 1, 1, 1, 0, 0, 0]).bool()
    # Two of five were undesired; the fifth sample takes its half with it, the second brings its whole back.
    assert _share_of_rest(0.4, c, sought, told) == pytest.approx((0.4 * 5 - 0.5 + 1) / 4)
    assert _share_of_rest(None, c, sought, told) is None
