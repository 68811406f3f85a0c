"""The attack lowers its loss, finds words that can be typed, and is the same again; its gradient is the loss's."""

import pytest
import torch
from conftest import make_pipeline as make_ddpm
from test_stable_diffusion import WORDS, make_pipeline, where_words_have_a_say

from vdu import VduError
from vdu.backbone import load_backbone
from vdu.prompt_attack import AttackBudget, _draws, _Search, _vocabulary, attack

TEXTS = ("a red apple", "a blue pear")
SMALL = AttackBudget(words=3, rounds=6, candidates=8, images=2, times=3)


@pytest.fixture
def backbone(tmp_path):
    return where_words_have_a_say(load_backbone(make_pipeline(tmp_path)))


@pytest.fixture
def x_0():
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def test_it_lowers_its_loss_and_is_the_same_again(backbone, x_0):
    first, second = (attack(backbone, backbone.network, x_0, TEXTS, SMALL) for _ in range(2))
    assert first.loss_attacked < first.loss_plain
    assert (first.prefix, first.loss_attacked) == (second.prefix, second.loss_attacked)
    assert len(first.prefix.split()) == len(first.random_prefix.split()) == 3
    assert set(first.prefix.split()) - set("".join(WORDS)) <= set(WORDS)
    losses, gradients = 6 * 8 + 1 + 4, 6
    assert first.evaluations == (losses + gradients) * 2 * 3
    assert first.record()["budget"]["rounds"] == 6


def test_its_loss_is_that_of_the_typed_prompt(backbone, x_0):
    words, _ = _vocabulary(backbone.pipeline.tokenizer)
    draws = _draws(backbone, x_0, 3, torch.Generator().manual_seed(0))
    chosen = [words.index("red"), words.index("pear")]
    found = _Search(backbone, backbone.network, TEXTS, words).loss(draws, chosen)
    naive = []
    for i, text in enumerate(TEXTS):
        for j in range(3):
            n = slice(3 * i + j, 3 * i + j + 1)
            with torch.no_grad():
                c = backbone.condition([f"red pear {text}"])
                eps = backbone.predict_eps(backbone.network, draws.x_t[n], draws.t[n], c)
            naive.append((eps - draws.eps[n]).pow(2).mean())
    torch.testing.assert_close(torch.tensor(found), torch.stack(naive).mean(), rtol=1e-4, atol=1e-5)


def test_its_gradient_is_the_slope_of_its_loss(backbone, x_0):
    words, numbers = _vocabulary(backbone.pipeline.tokenizer)
    draws = _draws(backbone, x_0, 3, torch.Generator().manual_seed(0))
    search, chosen = _Search(backbone, backbone.network, TEXTS, words), [words.index("red")]
    slope = search.gradient(draws, chosen)
    assert slope.shape == (1, 16)
    direction, table = slope[0] / slope[0].norm(), backbone.pipeline.text_encoder.get_input_embeddings().weight
    losses = []
    for step in (1e-2, -1e-2):
        with torch.no_grad():
            kept = table[numbers[chosen[0]]].clone()
            # "red" is in the first text too: a word that no text has stands for the prefix alone
            table[numbers[words.index("style")]] = kept + step * direction
        losses.append(search.loss(draws, [words.index("style")]))
    assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(float(slope[0].norm()), rel=0.05)


def test_models_without_text_and_words_without_room_are_refused(backbone, x_0):
    with pytest.raises(VduError, match="takes no prompts"):
        attack(load_backbone(make_ddpm()), None, x_0, TEXTS, SMALL)
    with pytest.raises(VduError, match="40 words does not fit into a prompt of 12 tokens"):
        attack(backbone, backbone.network, x_0, TEXTS, AttackBudget(words=40))
