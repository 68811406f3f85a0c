"""Which of the own samples are undesired, and how many: without labels, from heads that never saw them."""

from __future__ import annotations

import math

import pytest
import torch
from clusters import bank_of

import vdu.preparation.responsibility
from vdu.diffusion.noising import Clean
from vdu.preparation.preparation import Preparation
from vdu.preparation.responsibility import _calibrated, _estimated_share, _folds, _levelled, responsibilities


def test_responsibilities_find_the_undesired_samples_and_their_share_without_labels(clusters):
    forget, own, undesired = clusters
    c = responsibilities(forget, own, seed=0)
    assert ((c > 0.5) == undesired).double().mean() > 0.9
    assert float(c.mean()) == pytest.approx(0.2, abs=0.08)


def test_a_given_share_sets_the_level(clusters):
    forget, own, _ = clusters
    for share in (0.1, 0.4):
        assert float(responsibilities(forget, own, 0, share).mean()) == pytest.approx(share, abs=1e-4)


def test_the_level_moves_soft_scores_until_their_mean_is_the_share():
    scores, counted = torch.linspace(-3, 5, 81).double(), torch.arange(81) % 3 > 0
    moved = _levelled(scores, 0.07, counted)
    assert float(moved[counted].sigmoid().mean()) == pytest.approx(0.07, abs=1e-6)
    torch.testing.assert_close(moved - moved[0], scores - scores[0])


@pytest.mark.parametrize("softened", [0.7, 2.0, 5.0])
def test_level_and_temperature_bring_the_true_posterior_back_from_scores_too_soft_or_too_sharp(softened):
    pi, n = 0.15, 20_000
    g = torch.Generator().manual_seed(0)
    undesired = torch.arange(n) < pi * n
    x_o = torch.where(undesired, 1.5, -1.5) + torch.randn(n, generator=g)
    x_f = 1.5 + torch.randn(n, generator=g)
    log_odds = lambda x: 3 * x + math.log(pi / (1 - pi))  # noqa: E731  (of two Gaussians at ±1.5)
    c = _calibrated(log_odds(x_f) / softened + 4, log_odds(x_o) / softened + 4, pi, torch.ones(n, dtype=torch.bool))
    assert float((c - log_odds(x_o).sigmoid()).abs().mean()) < 0.005


def test_a_given_share_is_one_of_what_was_not_sought(clusters):
    forget, own, _ = clusters
    sought = torch.arange(200) % 4 == 1
    c = responsibilities(forget, own, 0, 0.3, sought)
    assert float(c[~sought].mean()) == pytest.approx(0.3, abs=1e-4)


def test_the_first_heads_take_what_was_sought_as_likely(clusters, monkeypatch):
    forget, own, _ = clusters
    sought = torch.arange(200) % 4 == 1
    scores, known = vdu.preparation.responsibility._held_out_scores, []
    monkeypatch.setattr("vdu.preparation.responsibility.ROUNDS", 1)
    monkeypatch.setattr("vdu.preparation.responsibility._held_out_scores", lambda *a: known.append(a[2]) or scores(*a))
    responsibilities(forget, own, 0, sought=sought)
    responsibilities(forget, own, 0)
    assert len(known) == 6  # three sets of heads each
    for labels in known[:3]:
        assert labels.tolist() == pytest.approx([0.8 * likely for likely in sought.tolist()])
    assert known[3:] == [None] * 3


def test_every_fold_holds_samples_that_were_sought_and_others():
    sought = torch.arange(200) % 4 == 1
    fold = _folds(200, sought)
    assert all(int((fold[sought] == k).sum()) in (12, 13) for k in range(4))
    assert all(int((fold[~sought] == k).sum()) in (37, 38) for k in range(4))
    assert torch.equal(_folds(200, None), torch.arange(200) % 4)


@pytest.mark.parametrize("words", range(1, 9))
def test_words_that_take_turns_are_each_tried_in_more_than_one_fold(words):
    sought, made_of = torch.arange(512) % 4 == 1, torch.full((512,), -1)
    made_of[5::8] = torch.arange(64) % 50
    fold = _folds(512, sought, made_of)[1::8]
    assert all(len(set(fold[word::words].tolist())) > 1 for word in range(words))


def test_what_was_made_of_a_forget_image_is_held_out_with_it(clusters, monkeypatch):
    sought, made_of = torch.arange(200) % 4 == 1, torch.full((200,), -1)
    made_of[5::8] = torch.arange(25) % 7
    fold = _folds(200, sought, made_of)
    assert torch.equal(fold[~sought], _folds(200, sought)[~sought])
    assert torch.equal(fold[5::8], made_of[5::8] % 4)
    known = []
    monkeypatch.setattr(
        "vdu.preparation.responsibility._held_out_scores",
        lambda *a: known.append(a[-1]) or (torch.ones(2), torch.arange(200.0)),
    )
    responsibilities(*clusters[:2], 0, 0.3, sought, made_of)
    assert all(torch.equal(given, fold) for given in known)


def test_the_share_is_that_of_what_was_not_sought_and_the_sought_ones_follow_by_their_scores(clusters, monkeypatch):
    forget, own, undesired = clusters
    number = torch.arange(200)
    sought = (undesired & (number % 2 == 0)) | (number % 20 == 1)  # 20 that show it, 10 that do not
    bounds, counts = [], []

    def estimated(score_f: torch.Tensor, score_o: torch.Tensor) -> float:
        counts.append(len(score_o))
        bounds.append(_estimated_share(score_f, score_o))
        return bounds[-1]

    monkeypatch.setattr("vdu.preparation.responsibility._estimated_share", estimated)
    c = responsibilities(forget, own, 0, sought=sought)
    assert counts == [170] * 3
    assert float(c[~sought].mean()) == pytest.approx(sum(bounds) / 3, rel=1e-3)
    assert float(c[sought & undesired].mean()) > 0.5
    assert float(c[sought & ~undesired].mean()) < 0.3


def test_the_share_is_the_mean_of_the_bounds_of_three_sets_of_first_heads(clusters, monkeypatch):
    monkeypatch.setattr("vdu.preparation.responsibility.STEPS", 30)
    monkeypatch.setattr("vdu.preparation.responsibility.ROUNDS", 1)
    forget, own, _ = clusters
    folds = _folds(own.images, None)
    bounds = [
        _estimated_share(*vdu.preparation.responsibility._held_out_scores(forget, own, None, seed, folds))
        for seed in (5, 9, 13)
    ]
    assert len(set(bounds)) > 1
    assert float(responsibilities(forget, own, 5).mean()) == pytest.approx(sum(bounds) / 3, rel=1e-4)


def test_one_forget_image_is_enough_where_the_share_is_known(clusters):
    _, own, undesired = clusters
    c = responsibilities(bank_of(torch.tensor([2.0]), 7), own, 0, 0.2)
    assert c[undesired].mean() > c[~undesired].mean() + 0.3


@pytest.mark.parametrize(
    ("images", "given", "source"), [(1, None, "assumed"), (1, 0.3, "given"), (2, None, "estimated")]
)
def test_the_share_of_one_forget_image_is_assumed(backbone, forget, images, given, source):
    preparation = Preparation(backbone, Clean(forget[:images]), seed=0, own_count=8, given_share=given)
    assert preparation.share_source is None
    c = preparation.responsibilities
    assert preparation.share_source == source
    assert preparation.share == pytest.approx({"assumed": 0.05, "given": 0.3}.get(source, float(c.mean())))
    assert float(c.mean()) == pytest.approx(preparation.share, abs=1e-4)
