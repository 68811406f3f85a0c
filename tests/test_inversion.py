"""Prompts found from images: against the text encoder itself, and by what they are for."""

import pytest
import torch
from PIL import Image
from tiny_stable_diffusion import make_pipeline, make_xl_pipeline, where_words_have_a_say

from vdu import unlearn
from vdu.backbone import load_backbone
from vdu.diffusion.noising import Clean, noised
from vdu.errors import VduError
from vdu.methods import find_method, make_settings
from vdu.objective.bayes_target import BayesTarget
from vdu.preparation.preparation import Preparation
from vdu.prompts import Prompts
from vdu.seeding import generator
from vdu.text.inversion import MOST_PROMPTS, find_prompts

TEXT = "a red apple in noto style"


@pytest.fixture
def backbone(tmp_path):
    return where_words_have_a_say(load_backbone(make_pipeline(tmp_path), Prompts(("a pear", "a blue apple"))))


@pytest.fixture
def x_0():
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def _error(backbone, x_0, c):
    """‖y − f_*‖² on noise that the search never saw."""
    at = noised(backbone, Clean(x_0.repeat(40, 1, 1, 1), c.repeat(40)), generator(9, "unseen"))
    with torch.no_grad():
        output = backbone.output(backbone.network, at.x_t, at.t, at.c)
    return float((output - backbone.from_eps(at.eps, at.x_t, at.t)).pow(2).mean())


@pytest.mark.parametrize("make", [make_pipeline, make_xl_pipeline])
def test_a_prompts_own_words_have_the_encodings_that_the_pipeline_gives_them(make, tmp_path):
    backbone = load_backbone(make(tmp_path))
    words = []
    for tokenizer, encoder in backbone.text_parts:
        ids = getattr(backbone.pipeline, tokenizer)(TEXT, add_special_tokens=False).input_ids
        words.append(getattr(backbone.pipeline, encoder).get_input_embeddings().weight.detach()[ids][None])
    with torch.no_grad(), backbone.placed_text():
        made = backbone.encodings_of_words(words)
    known = backbone._encoded([TEXT])
    assert len(made) == len(known)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(made, known, strict=True))
    numbers = torch.cat([backbone.add_prompts(made), backbone.condition([TEXT])])
    assert torch.allclose(*backbone._encodings[0][numbers], atol=1e-5)


def test_found_prompts_say_more_of_their_own_image_than_the_empty_prompt_and_each_others(backbone):
    x_0 = torch.tensor([-2.0, 0.0, 2.0]).view(3, 1, 1, 1).expand(3, 4, 8, 8)
    found = find_prompts(backbone, x_0, 0, steps=60)
    own, turned, empty = (_error(backbone, x_0, c) for c in (found, found.roll(1), torch.zeros_like(found)))
    assert own < 0.98 * empty
    assert own < 0.998 * turned


def test_the_same_seed_finds_the_same_and_the_model_stays_as_it_was(tmp_path, x_0):
    pipeline = make_pipeline(tmp_path)
    pipeline.text_encoder.half()
    backbone = load_backbone(pipeline)
    before = {name: p.clone() for name, p in pipeline.text_encoder.named_parameters()}
    weights = [p.clone() for p in backbone.network.parameters()]
    first, second, other = (find_prompts(backbone, x_0, seed, steps=3) for seed in (0, 0, 1))
    assert torch.equal(backbone._encodings[0][first], backbone._encodings[0][second])
    assert not torch.equal(backbone._encodings[0][first], backbone._encodings[0][other])
    assert pipeline.text_encoder.dtype == torch.float16
    assert all(torch.equal(p, before[name]) for name, p in pipeline.text_encoder.named_parameters())
    assert all(torch.equal(a, b) for a, b in zip(backbone.network.parameters(), weights, strict=True))
    assert not any(p.requires_grad for p in backbone.network.parameters())


def test_a_quarter_of_the_own_samples_asks_with_found_prompts_in_turn(backbone, x_0):
    backbone.sample_from(Prompts(("a pear", "a blue apple"), ("",)))
    preparation = Preparation(backbone, Clean(x_0, torch.zeros(3, dtype=torch.long)), 0, inversion_steps=2)
    found, (pear, apple) = preparation.asking.found.tolist(), backbone.condition(["a pear", "a blue apple"]).tolist()
    wanted = [pear, found[0], apple, 0, pear, found[1], apple, 0, pear, found[2], apple, 0, pear, found[0]]
    assert preparation.own_conditions(14).tolist() == wanted
    prompts = preparation.asking.of_own(14)
    assert prompts.sought.tolist() == [i % 4 == 1 for i in range(14)]
    assert prompts.base.tolist() == prompts.with_words.tolist() == wanted
    bank = preparation.forget_bank
    assert bank.c[:3].tolist() == found
    assert torch.equal(bank.asked, bank.c)


def test_images_beyond_the_most_prompts_keep_the_empty_one(backbone):
    many = torch.randn(MOST_PROMPTS + 2, 4, 8, 8)
    preparation = Preparation(backbone, Clean(many, torch.zeros(len(many), dtype=torch.long)), 0, inversion_steps=1)
    c = preparation.asking.of_forget(len(many)).base
    assert len(c) == len(many)
    assert (c > 0).sum() == MOST_PROMPTS
    assert not c[MOST_PROMPTS:].any()


def test_at_prompts_and_at_the_empty_one_the_direction_is_bounded(backbone, x_0):
    backbone.sample_from(Prompts(("a pear", "a blue apple"), ("",)))
    preparation = Preparation(
        backbone, Clean(x_0, torch.zeros(3, dtype=torch.long)), 0, own_count=8, score_steps=1, inversion_steps=2
    )
    heads, bank = (preparation.discriminator, preparation.prompted_discriminator), preparation.own_bank
    undesired, bound = preparation.forget_score(), 0.33
    term = BayesTarget(backbone, bank, *heads, strength=4.0, rho_max=0.9, prompted_rho_max=bound).guide(undesired)
    for i in range(0, len(bank.t), 7):
        at = (bank.x_t[i : i + 1], bank.t[i : i + 1])
        odds = [
            4.0 * head(h[i : i + 1], bank.t_share[i : i + 1]).exp()
            for head, h in zip(heads, (bank.features, bank.prompted_features), strict=True)
        ]
        unasked, asked = (float((o / (1 + o)).clamp(max=0.9)) for o in odds)
        asked = asked if bank.c[i] > 0 else unasked
        with torch.no_grad():
            direction = bank.unprompted[i].float() - backbone.output(undesired, *at)[0]
        wanted = bank.original[i].float() + asked / (1 - min(unasked, bound)) * direction
        assert torch.allclose(term.target[i].float(), wanted, atol=5e-3)


def test_own_samples_weigh_more_and_are_no_target_where_text_is_read():
    vdu, ga = find_method("vdu"), find_method("ga")
    assert make_settings(vdu, {}).gamma == 0.6
    assert (make_settings(vdu, {}).for_text().gamma, make_settings(vdu, {}).for_text().strength) == (0.75, 2.5)
    assert (make_settings(vdu, {}).learning_rate, make_settings(vdu, {}).for_text().learning_rate) == (2e-4, 1e-4)
    assert make_settings(vdu, {"learning_rate": 2e-4}).for_text().learning_rate == 2e-4
    for name, own, steps in (("vdu", 512, 100), ("vdu-quick", 256, 50)):
        with_text = make_settings(find_method(name), {}).for_text()
        assert (with_text.own_samples, with_text.score_steps) == (own, steps)
    quick = make_settings(find_method("vdu-quick"), {})
    assert (quick.optimizer, quick.steps, quick.learning_rate) == ("muon", 75, 5e-4)
    quick = quick.for_text()
    assert (quick.optimizer, quick.steps, quick.learning_rate) == ("adam", 150, 1e-4)
    given = make_settings(vdu, {"gamma": 0.6}).for_text()
    assert (given.gamma, given.strength, given.retained_samples) == (0.6, 2.5, False)
    assert make_settings(vdu, {}).retained_samples
    with pytest.raises(VduError, match="take no text"):
        make_settings(vdu, {"retained_samples": True}).for_text()
    assert make_settings(ga, {}).for_text() == make_settings(ga, {})


@pytest.mark.usefixtures("few_samples")
def test_without_words_a_run_says_how_many_prompts_it_found(tmp_path):
    (tmp_path / "forget").mkdir()
    for i in range(3):
        Image.new("RGB", (16, 16), (80 * i, 40, 200)).save(tmp_path / "forget" / f"{i}.png")
    few = {"steps": 2, "guard_every_steps": 2, "batch_size": 2, "stop_share": None}
    results = [
        unlearn(make_pipeline(tmp_path), tmp_path / "forget", settings=few | {"inversion_steps": steps})
        for steps in (2, 2, 0)
    ]
    assert [r.record["prompts_found"] for r in results] == [3, 3, 0]
    assert [r.record["settings"]["gamma"] for r in results] == [0.75] * 3
    hashes = [r.record["result_sha256"] for r in results]
    assert hashes[0] == hashes[1] != hashes[2]
    assert "and 3 that were found from them" in results[0].report(tmp_path / "report.html").read_text()
