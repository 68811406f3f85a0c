"""The attack lowers its loss, finds words that can be typed, and is the same again; its gradient is the loss's."""

import pytest
import torch
from conftest import make_pipeline as make_ddpm
from tiny_stable_diffusion import WORDS, make_pipeline, make_xl_pipeline, where_words_have_a_say

from vdu import VduError
from vdu.backbone import load_backbone
from vdu.evaluation.prompt_attack import AttackBudget, _draws, _Search, attack, require_room
from vdu.text.vocabulary import typed_words, words_of

TEXTS = ("a red apple", "a blue pear")
SMALL = AttackBudget(words=3, rounds=6, candidates=8, images=2, times=3)


@pytest.fixture
def backbone(tmp_path):
    return where_words_have_a_say(load_backbone(make_pipeline(tmp_path)))


@pytest.fixture
def x_0():
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def test_it_lowers_its_loss_and_is_the_same_again(backbone, x_0):
    first, second = (attack(backbone, x_0, TEXTS, SMALL, prompts=TEXTS) for _ in range(2))
    assert first.loss_attacked < first.loss_plain
    assert (first.prefix, first.loss_attacked) == (second.prefix, second.loss_attacked)
    assert len(first.prefix.split()) == len(first.random_prefix.split()) == 3
    assert set(first.prefix.split()) - set("".join(WORDS)) <= set(WORDS)
    losses, gradients = 8 + 6 * 8 + 4, 6
    assert first.evaluations == (losses + gradients) * 2 * 3
    assert not set(first.random_prefix.split()) & set(words_of(TEXTS))
    another = attack(backbone, x_0, TEXTS, SMALL, prompts=TEXTS, number=1)
    assert another.random_prefix != first.random_prefix
    assert another.loss_plain != first.loss_plain


def test_its_loss_is_that_of_the_typed_prompt(backbone, x_0):
    words, _ = typed_words(backbone.tokenizers)
    draws = _draws(backbone, x_0, 3, torch.Generator().manual_seed(0))
    chosen = [words.index("red"), words.index("pear")]
    with backbone.placed_text(single=True):
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
    words, numbers = typed_words(backbone.tokenizers)
    _check_slopes(backbone, words, numbers, x_0)


def test_the_words_of_two_text_encoders_are_attacked_together(tmp_path, x_0):
    backbone = where_words_have_a_say(load_backbone(make_xl_pipeline(tmp_path)))
    words, numbers = typed_words(backbone.tokenizers)
    _check_slopes(backbone, words, numbers, x_0)
    first, second = (attack(backbone, x_0, TEXTS, SMALL, prompts=TEXTS) for _ in range(2))
    assert first.loss_attacked < first.loss_plain
    assert (first.prefix, first.loss_attacked) == (second.prefix, second.loss_attacked)


def _check_slopes(backbone, words, numbers, x_0):
    """The gradient at a word that only the prefix has, against a central difference, encoder by encoder."""
    draws = _draws(backbone, x_0, 3, torch.Generator().manual_seed(0))
    search, chosen = _Search(backbone, backbone.network, TEXTS, words), [words.index("style")]
    with backbone.placed_text(single=True):
        slopes = search.gradient(draws, chosen)
        assert len(slopes) == len(backbone.vocabularies)
        for slope, (_, encoder), number in zip(slopes, backbone.text_parts, numbers, strict=True):
            table = getattr(backbone.pipeline, encoder).get_input_embeddings().weight
            row, direction = int(number[chosen[0]]), slope[0] / slope[0].norm()
            kept, losses = table[row].detach().clone(), []
            for step in (1e-2, -1e-2):
                with torch.no_grad():
                    table[row] = kept + step * direction
                losses.append(search.loss(draws, chosen))
            with torch.no_grad():
                table[row] = kept
            assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(float(slope[0].norm()), rel=0.05)


def test_a_gradient_in_parts_is_that_of_all_at_once(backbone, x_0, monkeypatch):
    words, _ = typed_words(backbone.tokenizers)
    draws = _draws(backbone, x_0, 3, torch.Generator().manual_seed(0))
    search, chosen = _Search(backbone, backbone.network, TEXTS, words), [words.index("style")]
    with backbone.placed_text(single=True):
        whole, loss = search.gradient(draws, chosen), search.loss(draws, chosen)
        monkeypatch.setattr(backbone, "largest_batch", 4)
        parts, loss_of_parts = search.gradient(draws, chosen), search.loss(draws, chosen)
    assert loss_of_parts == pytest.approx(loss, rel=1e-4)
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-6)


def test_models_without_text_and_words_without_room_are_refused(backbone, x_0):
    with pytest.raises(VduError, match="takes no prompts"):
        attack(load_backbone(make_ddpm()), x_0, TEXTS, SMALL, prompts=TEXTS)
    said = "40 words does not fit before a prompt of 5 tokens where the model reads 12"
    with pytest.raises(VduError, match=said):
        attack(backbone, x_0, TEXTS, AttackBudget(words=40), prompts=TEXTS)
    require_room(backbone, TEXTS, AttackBudget(words=7))
    with pytest.raises(VduError, match="8 words does not fit"):
        require_room(backbone, TEXTS, AttackBudget(words=8))


def test_where_the_prompts_say_every_word_there_is_nothing_to_begin_with(backbone, x_0):
    words, _ = typed_words(backbone.tokenizers)
    prompts = [*TEXTS, *words]
    with pytest.raises(VduError, match="there is nothing to attack with"):
        attack(backbone, x_0, TEXTS, SMALL, prompts=prompts)
