"""UA, IRA and CRA against a naive count over samples; the prompts' file and its errors."""

import pytest
import torch

from vdu import VduError
from vdu.concept_prompts import asking_for, of_kind, read_concept_prompts
from vdu.evaluation.concept_accuracy import Classes, accuracies, seen_as_asked

CLASSES = {"style": ("noto", "twemoji"), "object": ("fruit", "face")}


def _naive(asked, seen, target):
    """Percent by counting, one sample at a time."""
    hits = {name: [] for name in ("ua", "ua_none", "ua_other", "ira", "cra", "cra_target")}
    for (a, b), (p, q) in zip(asked, seen, strict=True):
        if a == target:
            hits["ua"].append(p != target)
            hits["ua_none"].append(p == -1)
            hits["ua_other"].append(p not in (target, -1))
            if b != -1:
                hits["cra_target"].append(q == b)
            continue
        if a != -1:
            hits["ira"].append(p == a)
        if b != -1:
            hits["cra"].append(q == b)
    return {name: 100 * sum(flags) / len(flags) for name, flags in hits.items()}


def test_the_figures_are_the_naive_counts():
    g = torch.Generator().manual_seed(0)
    asked, seen = (torch.randint(-1, 4, (300, 2), generator=g) for _ in range(2))
    found = accuracies(Classes(*asked.T), Classes(*seen.T), 2)
    naive = _naive(asked.tolist(), seen.tolist(), 2)
    assert found.keys() == naive.keys()
    for name, interval in found.items():
        assert interval.value == pytest.approx(naive[name])
        assert interval.low < interval.value < interval.high
    assert found["ua"].value == pytest.approx(found["ua_none"].value + found["ua_other"].value)


def test_each_class_has_the_naive_count_of_its_own():
    g = torch.Generator().manual_seed(1)
    asked, seen = (torch.randint(-1, 2, (200,), generator=g) for _ in range(2))
    found = seen_as_asked(asked, seen, ("noto", "twemoji", "fluent"))
    assert found.keys() == {"noto", "twemoji"}  # nobody asked for fluent
    for number, name in enumerate(found):
        hits = [s == a for a, s in zip(asked.tolist(), seen.tolist(), strict=True) if a == number]
        assert found[name].value == pytest.approx(100 * sum(hits) / len(hits))
        assert found[name].low < found[name].value < found[name].high


def test_a_model_that_makes_noise_forgets_nothing_but_says_none():
    asked = torch.tensor([0, 0, 1, 1])
    noise = torch.full((4,), -1)
    found = accuracies(Classes(asked, asked), Classes(noise, noise), 0)
    assert found["ua"].value == found["ua_none"].value == 100
    assert found["ua"].low < 100  # the interval has a width where all samples agree
    assert found["ua_other"].value == found["ira"].value == found["cra"].value == 0


def test_what_nobody_asked_for_is_none():
    asked = torch.tensor([1, 1])
    found = accuracies(Classes(asked, torch.tensor([-1, -1])), Classes(asked, asked), 0)
    assert found["ua"].value is None
    assert found["cra"].value is None
    assert found["ira"].value == 100


def test_prompts_are_read_and_chosen(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,style,object,kind\na red apple,noto,fruit,plain\n'a key',noto,,paraphrase\n")
    prompts = read_concept_prompts(path, CLASSES)
    assert [p.object for p in prompts] == ["fruit", ""]
    assert asking_for(prompts, "fruit") == of_kind(prompts, "plain") == prompts[:1]
    assert asking_for(prompts, "noto") == prompts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompt,style\nx,noto\n", "needs the columns prompt, style, object, kind"),
        ("prompt,style,object,kind\nx,nota,,plain\n", "row 2 has the style 'nota'.*did you mean 'noto'"),
        ("prompt,style,object,kind\nx,noto,fruit,plane\n", "the kind 'plane': did you mean 'plain'"),
        ("prompt,style,object,kind\n,noto,fruit,plain\n", "row 2 has no prompt"),
        ("prompt,style,object,kind\nx,noto,fruit,paraphrase\n", "no prompt of the kind plain"),
    ],
)
def test_a_prompt_file_that_cannot_be_used_is_one_line(text, said, tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text(text)
    with pytest.raises(VduError, match=said) as raised:
        read_concept_prompts(path, CLASSES)
    assert "\n" not in str(raised.value)
