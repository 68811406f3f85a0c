"""Names of members of a kind: chosen by own samples, told by what is asked for with them."""

import pytest
import torch

from vdu.preparation.members import TRIES, asking_for, likely_members, members_that_tell
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


def test_where_all_is_undesired_no_word_tells():
    others = torch.full((40,), 0.9)
    others[::4] = 0.2
    c_asked = torch.ones(TRIES)
    assert compared(c_asked.double(), others.double())[0] < 3
    assert members_that_tell(["tiger"], c_asked, others) == []
