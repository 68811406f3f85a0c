"""Words are found, and taken out, where they stand for themselves."""

import pytest

from vdu.prompts import Prompts, without


def test_neutral_prompts_that_name_a_concept_in_whole_words_are_not_kept():
    neutral = ("a carrot", "a red Car.", "car: old", "a pear")
    assert Prompts(neutral, (" car ",)).kept == ("a carrot", "a pear")
    assert Prompts(neutral, (" ",)).kept == neutral
    assert Prompts(("a car",), ("car",)).kept == ("",)


@pytest.mark.parametrize(
    ("concept", "text", "rest"),
    [
        ("in noto style", "a cat In  Noto style", "a cat"),
        ("style", "a noto-style cat", "a noto-style cat"),
        ("a cat", "a cat's house and a cat", "a cat's house and"),
        ("noto style", "noto style !", ""),
        ("noto", "noto", ""),
    ],
)
def test_words_are_taken_out_where_they_stand_for_themselves(concept, text, rest):
    assert without(concept, text) == rest
