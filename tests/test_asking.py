"""What asks for the undesired among other words: against prompts written out, and what it makes of a run."""

import pytest
import torch
from conftest import make_pipeline as make_ddpm
from tiny_stable_diffusion import make_pipeline, where_words_have_a_say

from vdu.backbone import load_backbone
from vdu.diffusion.multi_scale import multi_scale_error
from vdu.diffusion.noising import Clean
from vdu.methods import find_method, make_settings
from vdu.objective.bayes_target import BayesTarget
from vdu.preparation.discriminator import fit_prompted_head
from vdu.preparation.preparation import Preparation
from vdu.prompts import Prompts
from vdu.seeding import generator
from vdu.text.asking import AskedPrompts, Asking
from vdu.text.closed_form import ClosedForm

pytestmark = pytest.mark.usefixtures("few_head_steps")

NEUTRAL = ("a pear", "a blue apple", "a red apple")


@pytest.fixture
def backbone(tmp_path):
    return where_words_have_a_say(load_backbone(make_pipeline(tmp_path), Prompts(NEUTRAL, ("",))))


@pytest.fixture
def x_0():
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def _texts(backbone, numbers):
    of = {number: text for text, number in backbone._number.items()}
    return [of.get(number) for number in numbers.tolist()]


def test_a_concept_stands_at_every_place_of_a_prompt(backbone):
    numbers = Asking(backbone, ("a red",)).put_into(["a blue apple"] * 5, range(5))
    wanted = ["a red a blue apple", "a a red blue apple", "a blue a red apple", "a blue apple a red"]
    assert _texts(backbone, numbers) == [*wanted, wanted[0]]
    assert _texts(backbone, Asking(backbone, ("a red",)).put_into(["", ""], (0, 7))) == ["a red"] * 2


def test_a_concept_stands_where_it_is_read_in_a_prompt_that_is_too_long(backbone):
    long = " ".join(["apple", "pear"] * 20)  # 12 tokens are read, two of them marks
    plain = backbone.condition([long])
    numbers = Asking(backbone, ("a red",)).put_into([long] * 30, range(30))
    assert len(set(numbers.tolist())) == 9  # before each of the first eight words, and after them
    states = backbone.states_of([long, *(_texts(backbone, numbers))])
    assert not any(torch.equal(states[0], other) for other in states[1:])
    assert plain.item() not in numbers


def test_a_quarter_of_the_own_samples_asks_with_the_words_alone_and_learns_among_others(backbone):
    backbone.sample_from(Prompts(NEUTRAL, ("red",)))
    prompts = Asking(backbone, ("red",)).of_own(32)
    assert prompts.sought.tolist() == [False, True, False, False] * 8
    base, worded, sampled = (_texts(backbone, x) for x in (prompts.base, prompts.with_words, prompts.sampled))
    assert set(base) == {"a pear", "a blue apple", ""}  # "a red apple" names the concept
    assert [i for i in range(32) if base[i] == ""] == [3, 5, 7, 11, 15, 19, 21, 23, 27, 31]
    assert sampled == ["red" if i % 4 == 1 else base[i] for i in range(32)]
    assert [base[i] for i in range(1, 32, 4)] == ["" if i == 5 or i == 21 else base[i - 1] for i in range(1, 32, 4)]
    for text, with_words in zip(base, worded, strict=True):
        words = with_words.split()
        words.remove("red")
        assert words == text.split()
    assert torch.equal(Asking(backbone, ("red",)).of_own(9).sampled, prompts.sampled[:9])


def test_sought_images_are_always_trained_with_the_words_and_others_in_a_share_of_their_draws():
    n = 400
    prompts = AskedPrompts(torch.zeros(n).long(), torch.ones(n).long(), torch.zeros(n).long(), torch.arange(n) % 2 == 0)
    worded = prompts.in_training(5, 0.3, generator(0, "test")).view(5, n)
    assert worded[:, ::2].eq(1).all()
    assert float(worded[:, 1::2].float().mean()) == pytest.approx(0.3, abs=0.05)
    assert 0.1 < float((worded[0, 1::2] * worded[1, 1::2]).float().mean()) / 0.3 < 0.6  # drawn for each anew


def test_a_target_is_that_of_the_prompt_without_the_words_and_is_learned_with_them(backbone, x_0):
    backbone.sample_from(Prompts(NEUTRAL, ("red",)))
    preparation = Preparation(backbone, Clean(x_0, backbone.condition(["red"] * 3)), 0, own_count=8, score_steps=1)
    own, asking = preparation.own_bank, preparation.asking
    prompts = asking.of_own(8)
    assert torch.equal(preparation.own_samples.c, prompts.sampled)
    assert torch.equal(own.c, prompts.base.repeat(own.draws))
    sought = prompts.sought.repeat(own.draws)
    assert torch.equal(own.asked[sought], prompts.with_words.repeat(own.draws)[sought])
    forget = preparation.forget_bank
    assert not forget.c.any()
    assert 0.4 < float((forget.asked > 0).float().mean()) < 0.9
    assert set(forget.asked.unique().tolist()) == {0, *asking.of_forget(3).with_words.tolist()}
    heads = (preparation.discriminator, preparation.prompted_discriminator)
    term = BayesTarget(backbone, own, *heads).guide(preparation.forget_score())
    with torch.no_grad():
        unworded = backbone.output(backbone.network, own.x_t, own.t, own.c)
    torch.testing.assert_close(own.original.float(), unworded, atol=5e-3, rtol=5e-3)
    i = torch.randint(len(own.t), (4,), generator=generator(0, "batch"))
    output = backbone.output(backbone.network, own.x_t[i], own.t[i], own.asked[i])
    error = multi_scale_error(output - term.target[i].float(), (1 / backbone.alpha_bar[own.t[i]] - 1).sqrt())
    wanted = (term.weight[i] * error).mean()
    torch.testing.assert_close(term(backbone.network, 4, generator(0, "batch")), wanted)


def test_what_was_sought_is_known_to_the_responsibilities_and_no_part_of_the_share(backbone, x_0, monkeypatch):
    known = []
    monkeypatch.setattr(
        "vdu.preparation.preparation.responsibilities", lambda *_, **given: known.append(given) or torch.arange(8) / 10
    )
    backbone.sample_from(Prompts(NEUTRAL, ("red",)))
    preparation = Preparation(backbone, Clean(x_0, backbone.condition(["red"] * 3)), 0, own_count=8, score_steps=1)
    sought = preparation.asking.of_own(8).sought
    assert sought.tolist() == [False, True, False, False] * 2
    assert preparation.share == pytest.approx(sum(i / 10 for i in (0, 2, 3, 4, 6, 7)) / 6)
    assert torch.equal(known[0]["sought"], sought)
    assert known[0]["made_of"] is None
    assert torch.equal(preparation.own_conditions(4), preparation.asking.of_own(4).sampled)
    backbone.sample_from(Prompts(NEUTRAL))
    few = {"own_count": 8, "score_steps": 1, "inversion_steps": 1}
    seeking = Preparation(backbone, Clean(x_0, torch.zeros(3, dtype=torch.long)), 0, **few)
    assert seeking.share is not None
    assert torch.equal(known[1]["made_of"], seeking.own_prompts.found_from)
    assert int(known[1]["made_of"].max()) >= 0


def test_what_a_prompt_brings_is_learned_without_what_was_sought_with_other_words(backbone, x_0):
    backbone.sample_from(Prompts(NEUTRAL, ("red",)))
    preparation = Preparation(backbone, Clean(x_0, backbone.condition(["red"] * 3)), 0, own_count=8, score_steps=1)
    sought, bank = preparation.sought, preparation.own_bank
    heads = [fit_prompted_head(bank, torch.where(sought, c, 0.1), 0, sought) for c in (0.1, 0.9)]
    logits = [head(bank.prompted_features, bank.t_share) for head in heads]
    assert torch.equal(*logits)
    told = fit_prompted_head(bank, torch.where(sought, 0.9, 0.1), 0)(bank.prompted_features, bank.t_share)
    assert not torch.equal(told, logits[1])
    preparation.__dict__["responsibilities"] = torch.where(sought, 0.9, 0.1)
    of_run = preparation.prompted_discriminator(bank.prompted_features, bank.t_share)
    assert torch.equal(of_run, logits[1])


def test_nobody_knows_how_to_ask_where_prompts_are_many_no_text_is_read_or_nothing_is_sought(backbone, x_0):
    def asking(forget: tuple[str, ...], inversion_steps: int) -> Asking | None:
        backbone.sample_from(Prompts(NEUTRAL, forget))
        preparation = Preparation(backbone, Clean(x_0, backbone.condition(forget or [""])), 0)
        preparation.inversion_steps = inversion_steps
        return preparation.asking

    assert asking((), 0) is asking(("a pear", "a red apple", ""), 2) is None
    assert asking(("a pear", ""), 2) is None  # a picture without a caption was not asked for with another's
    assert asking(("a pear", "a pear"), 0).concepts == ("a pear",)
    assert asking(("",), 2).found_count == 3
    plain = Preparation(load_backbone(make_ddpm()), Clean(torch.zeros(2, 1, 8, 8)), 0, inversion_steps=2)
    assert (plain.asking, plain.sought, plain.own_conditions(4)) == (None, None, None)
    backbone.sample_from(Prompts(NEUTRAL, ("a pear", "a red apple")))
    captioned = Preparation(backbone, Clean(x_0[:2], backbone.condition(["a pear", "a red apple"])), 0, own_count=8)
    assert torch.equal(captioned.own_conditions(8), backbone.sample_conditions(8))
    assert captioned.own_bank.asked is None


def test_prompts_that_say_what_was_told_are_taught_without_it_and_others_with_it(backbone):
    backbone.sample_from(Prompts(("a pear in noto style", "a red apple"), ("",)))
    found = backbone.add_prompts(tuple(x[:2] for x in backbone._encodings))
    first = Asking(backbone, found=found).of_own(32)
    told = Asking(backbone, found=found).told(["in Noto style"], first)
    base, worded, sampled = (_texts(backbone, x) for x in (told.base, told.with_words, told.sampled))
    assert torch.equal(told.sampled, first.sampled)
    for i, text in enumerate(sampled):
        if text is None:  # found prompts: as if sought with the words, beside what their neighbour is asked with
            assert i % 4 == 1
            assert base[i] == ("" if i % 16 == 5 else base[i - 1])
        assert bool(told.sought[i]) == (text is None or "noto" in text)
        if text and "noto" in text:
            assert (base[i], worded[i]) == ("a pear", "a pear in noto style")
            continue
        assert text in (base[i], None)
        words = worded[i].replace("in Noto style", " ").split()
        assert " ".join(words) == base[i]
        assert "in Noto style" in worded[i]
    assert {words.index("in") for words in (w.split() for w in worded if "red" in w)} == {0, 1, 2, 3}


def test_what_is_made_of_neutral_prompts_tells_the_words(backbone):
    things = ("pear", "blue apple", "red apple", "apple", "red", "blue", "red pear", "blue pear")
    neutral = tuple(f"a {thing} in {style}" for thing in things for style in ("noto style", "pear"))
    backbone.sample_from(Prompts(neutral, ("",)))
    asking = Asking(backbone, found=backbone.add_prompts(tuple(x[:2] for x in backbone._encodings)))
    prompts = asking.of_own(64)
    says = torch.tensor([t is None or "noto" in t for t in _texts(backbone, prompts.sampled)])
    assert asking.telling_words(prompts, says.float()) == ["in noto style"]
    assert asking.telling_words(prompts, says.float() * 0.35) == []


def test_several_concepts_take_turns_before_they_move_on(backbone):
    numbers = Asking(backbone, ("red", "blue")).put_into(["a pear"] * 7, range(7))
    wanted = ["red a pear", "blue a pear", "a red pear", "a blue pear", "a pear red", "a pear blue", "red a pear"]
    assert _texts(backbone, numbers) == wanted


def test_half_of_what_is_sought_tries_words_among_others_and_half_takes_every_found_prompt(backbone):
    backbone.sample_from(Prompts(("a pear", "a blue apple", "a red apple"), ("",)))
    found = backbone.add_prompts(tuple(x[:1].repeat(4, 1, 1) for x in backbone._encodings))
    alone, tried = (Asking(backbone, found=found, tried=words).of_own(96) for words in ((), ("old", "flat")))
    assert torch.equal(tried.sought, alone.sought)
    assert torch.equal(tried.base, tried.sampled)
    assert torch.equal(tried.base, tried.with_words)
    assert torch.equal(tried.sampled[~tried.sought], alone.sampled[~tried.sought])
    assert alone.found_from[1::4].tolist() == [0, 1, 2, 3] * 6
    assert tried.found_from[5::8].tolist() == [0, 1, 2, 3] * 3
    for asked in (alone, tried):
        by_found = asked.found_from >= 0
        assert torch.equal(asked.sampled[by_found], found[asked.found_from[by_found]])
    texts = _texts(backbone, tried.sampled[1:96:8])
    assert texts[:4] == ["old a pear", "flat a blue apple", "a old red apple", "a flat pear"]
    assert len(set(texts)) >= 8
    assert torch.equal(Asking(backbone, found=found, tried=("old", "flat")).of_own(9).sampled, tried.sampled[:9])


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 8])
def test_every_tried_word_meets_neutral_prompts_of_every_kind_though_both_go_by_turns(backbone, count):
    kinds = [f"kind{k}" for k in range(6)]
    neutral = tuple(f"thing{i // 6} {kinds[i % 6]}" for i in range(300))
    backbone.sample_from(Prompts(neutral, ("",)))
    words = [f"word{w}" for w in range(count)]
    texts = Asking(backbone, found=torch.zeros(1).long(), tried=words)._texts(512)
    for word in words:
        met = [sum(word in text.split() and kind in text.split() for text in texts) for kind in kinds]
        assert sum(met) in (512 // 8 // count, 512 // 8 // count + 1)
        assert max(met) - min(met) <= 3


def test_tried_words_tell_each_for_itself_where_no_neutral_prompt_does(backbone):
    things = ("pear", "apple", "red pear", "red apple", "apple pear", "pear pear", "apple apple", "pear a")
    neutral = tuple(f"a {thing} in {style}" for thing in things for style in ("noto style", "pear"))
    backbone.sample_from(Prompts(neutral, ("",)))
    found = backbone.add_prompts(tuple(x[:2] for x in backbone._encodings))
    asking = Asking(backbone, found=found, tried=("blue", "old", "flat"))
    prompts = asking.of_own(256)
    texts = _texts(backbone, prompts.sampled)

    def c_of(*words):
        return torch.tensor([0.8 if t is None or set(words) & set(t.split()) else 0.05 for t in texts])

    assert asking.telling_words(prompts, c_of("blue")) == ["blue"]
    assert asking.telling_words(prompts, c_of("flat", "blue")) in (["blue", "flat"], ["flat", "blue"])
    assert asking.telling_words(prompts, c_of()) == []
    assert asking.telling_words(prompts, c_of("noto", "blue")) == ["in noto style"]
    told = asking.told(["blue", "flat"], prompts)
    base, worded = (_texts(backbone, x) for x in (told.base, told.with_words))
    for i, text in enumerate(texts):
        said = text is not None and bool({"blue", "flat"} & set(text.split()))
        assert bool(told.sought[i]) == (said or text is None)
        if said:
            assert i % 8 == 1
            assert worded[i] == text
            assert base[i].split() == [word for word in text.split() if word not in ("blue", "flat")]
        else:
            extra = [word for word in worded[i].split() if word in ("blue", "flat")]
            assert len(extra) == 1
            assert [word for word in worded[i].split() if word not in extra] == base[i].split()
            assert text in (base[i], None)
    of_style = asking.told(["noto style"], prompts)
    assert not any("noto" in text for text in _texts(backbone, of_style.base))  # not even around a word put into it


def _change(backbone, concepts, kept, erase):
    """How far keys and values of either half of ``kept`` move where the other is held: of the two the larger."""
    projections = [
        p for n, p in backbone.network.named_parameters() if n.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
    ]
    middle, changes = len(kept) // 2, []
    for known, unseen in ((kept[:middle], kept[middle:]), (kept[middle:], kept[:middle])):
        factor = ClosedForm.of_words(backbone, concepts, known, erase=erase).factor
        moved = size = 0.0
        for text in unseen:
            for state in backbone.states_of([text])[0].double():
                for w in (p.double() for p in projections):
                    moved += float((w @ factor @ state - w @ state).square().sum())
                    size += float((w @ state).square().sum())
        changes.append((moved / size) ** 0.5)
    return max(changes)


def test_many_names_are_erased_less_where_other_prompts_would_move(backbone, monkeypatch):
    kept = [f"a {x} {y}" for x in ("pear", "apple", "red", "blue") for y in ("in red", "in blue", "pear", "style")]
    backbone.sample_from(Prompts((*kept, "a noto pear"), ("",)))
    found = []
    for largest in (10.0, 0.1):
        monkeypatch.setattr("vdu.text.closed_form.LARGEST_CHANGE", largest)
        found.append(ClosedForm.among_neutral(backbone, ["noto", "flat"]).factor)
    erase = next(1 / 2**k for k in range(10) if _change(backbone, ["noto", "flat"], kept, 1 / 2**k) <= 0.1 or k == 9)
    assert erase < 1
    for factor, chosen in zip(found, (1.0, erase), strict=True):
        assert torch.equal(factor, ClosedForm.of_words(backbone, ["noto", "flat"], kept, erase=chosen).factor)
    alone = ClosedForm.of_words(backbone, ["noto"], kept).factor
    assert torch.equal(ClosedForm.among_neutral(backbone, ["noto"]).factor, alone)
    backbone.sample_from(Prompts(tuple(kept[:15]), ("",)))  # too few to say what they leave out
    few = ClosedForm.of_words(backbone, ["noto", "flat"], kept[:15]).factor
    assert torch.equal(ClosedForm.among_neutral(backbone, ["noto", "flat"]).factor, few)


def test_words_that_were_told_are_taught_and_their_closed_form_is_where_training_begins(backbone, x_0):
    things = ("pear", "blue apple", "red apple", "apple", "red", "blue", "red pear", "blue pear")
    neutral = tuple(f"a {thing} in {style}" for thing in things for style in ("noto style", "pear"))
    backbone.sample_from(Prompts(neutral, ("",)))
    few = {"own_count": 64, "score_steps": 1, "inversion_steps": 1, "own_sampler_steps": 1}
    preparation = Preparation(backbone, Clean(x_0, torch.zeros(3, dtype=torch.long)), 0, **few)
    texts = _texts(backbone, preparation.own_prompts.sampled)
    preparation.__dict__["responsibilities"] = torch.tensor([0.9 if "noto" in (t or "") else 0.1 for t in texts])
    assert preparation.told_words == preparation.found_words == ["in noto style"]
    base = preparation.taught_prompts.base
    assert "a red apple" in _texts(backbone, base)
    assert torch.equal(preparation.own_bank.c, base.repeat(preparation.own_bank.draws))
    assert torch.equal(preparation.sought, preparation.own_prompts.sought)
    forget = preparation.taught_forget_bank
    assert preparation.forget_bank.c.all()
    assert not forget.c.any()
    assert set(forget.asked.unique().tolist()) == {0, *backbone.condition(["in noto style"]).tolist()}
    kept = [p for p in neutral if "noto" not in p]
    closed = ClosedForm.of_words(backbone, ["in noto style"], kept)
    assert torch.equal(preparation.closed_form.factor, closed.factor)
    network, settings = backbone.trainable_copy(), make_settings(find_method("vdu"), {"inversion_steps": 1})
    objective = find_method("vdu").build(settings.for_text(), preparation, network)
    assert objective.plasticity.bank is preparation.taught_forget_bank
    assert objective.stability.bank is preparation.own_bank
    objective.begin(network)
    changed = {n for n, p in network.named_parameters() if not torch.equal(p, backbone.network.get_parameter(n))}
    assert changed == {
        n for n, _ in network.named_parameters() if n.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
    }
    given = Preparation(backbone, Clean(x_0, backbone.condition(["red"] * 3)), 0)
    backbone.sample_from(Prompts(neutral, ("red",)))
    assert (given.told_words, given.found_words) == (("red",), ())
    assert given.taught_prompts is given.own_prompts
    assert given.taught_forget_bank is given.forget_bank
    backbone.sample_from(Prompts(neutral, ("red", "blue")))
    captioned = Preparation(backbone, Clean(x_0[:2], backbone.condition(["red", "blue"])), 0)
    assert (captioned.told_words, captioned.closed_form) == ((), None)
    backbone.sample_from(Prompts(("", "a red"), ("red",)))
    assert given.closed_form is None  # no prompt would hold what other words mean
