"""The bank, the responsibilities and the Bayes target against naive loops and cases with known answers."""

from __future__ import annotations

import pytest
import torch
from clusters import DRAWS

from vdu.backbone import weights_sha256
from vdu.diffusion.multi_scale import multi_scale_error
from vdu.diffusion.noised_bank import fill_bank
from vdu.diffusion.noising import Clean
from vdu.errors import VduError
from vdu.methods import find_method, make_settings
from vdu.objective.bayes_target import BayesTarget, _weight, guided_until, velocity_weight
from vdu.preparation.discriminator import fit_head
from vdu.preparation.preparation import Preparation
from vdu.preparation.responsibility import responsibilities
from vdu.seeding import generator

pytestmark = pytest.mark.usefixtures("few_head_steps")


def test_a_bank_puts_every_image_once_into_every_part_of_the_time_range(backbone, forget):
    bank = fill_bank(backbone, forget, 0, "test", draws=4)
    assert bank.x_t.shape == (4 * len(forget), *backbone.shape)
    parts = (bank.t_share.view(4, len(forget)) * 4).floor()
    assert parts.eq(torch.arange(4).unsqueeze(1)).all()


def test_a_bank_holds_the_formula_and_the_frozen_networks_output(backbone, forget):
    bank = fill_bank(backbone, forget, 0, "test", draws=2)
    g = generator(0, "bank", "test")
    torch.rand(2 * len(forget), generator=g)
    eps = torch.randn(bank.x_t.shape, generator=g)
    for i in range(len(bank.t)):
        a = backbone.alpha_bar[bank.t[i]]
        x_t = a.sqrt() * forget[i % len(forget)] + (1 - a).sqrt() * eps[i]
        assert torch.allclose(bank.x_t[i], x_t, atol=1e-6)
        with torch.no_grad():
            alone = backbone.network(bank.x_t[i : i + 1], bank.t[i : i + 1]).sample[0]
        assert torch.allclose(bank.original[i].float(), alone, atol=2e-3)


def test_a_bank_holds_as_many_items_as_asked_in_whole_draws_and_four_at_least(backbone, forget):
    assert [fill_bank(backbone, forget, 0, "test", items=items).draws for items in (30, 31, 1)] == [5, 6, 4]


def test_a_bank_of_features_alone_has_the_same_and_holds_no_picture(backbone, forget):
    whole, features = (fill_bank(backbone, forget, 0, "test", features_only=only) for only in (False, True))
    assert torch.equal(features.features, whole.features)
    assert torch.equal(features.t_share, whole.t_share)
    assert len(features.x_t) == len(features.original) == 0


def test_a_bank_of_features_alone_is_no_smaller_for_large_pictures(backbone, forget, monkeypatch):
    monkeypatch.setattr("vdu.diffusion.noised_bank.BANK_BYTES", 10 * backbone.shape[-1] ** 2 * len(forget))
    draws = [fill_bank(backbone, forget, 0, "test", items=60, features_only=only).draws for only in (False, True)]
    assert draws == [4, 60 // len(forget)]


def test_the_earliest_items_are_those_of_the_draws_that_lie_under_a_share(backbone, forget):
    draws = {(7, 1.0): 3, (6, 1.0): 3, (12, 0.5): 12, (1, 1.0): 1}  # one at least
    for (count, end), early in draws.items():
        bank = fill_bank(backbone, forget, 0, "test", draws=count, t_range=(0.0, end))
        assert bank.earliest(0.5) == early * len(forget)


@pytest.mark.parametrize(("most", "draws"), [(6144, 12), (48, 6)])
def test_own_samples_are_judged_by_a_dozen_early_pictures_or_as_many_as_may_be_made(
    backbone, forget, monkeypatch, most, draws
):
    monkeypatch.setattr("vdu.preparation.banks.fill_bank", fill_bank)  # elsewhere smaller
    monkeypatch.setattr("vdu.preparation.early_banks.MOST_ITEMS", most)
    preparation = Preparation(backbone, Clean(forget), seed=3, own_count=8)
    judged = fill_bank(backbone, preparation.own_samples.x_0, 3, "judged", draws=draws, t_range=(0.0, 0.5))
    c = responsibilities(preparation.forget_bank, judged, 3)
    torch.testing.assert_close(preparation.responsibilities, c, rtol=0, atol=0)


@pytest.mark.parametrize(("items", "own_bank"), [(66, True), (72, False)])
def test_forget_images_of_which_training_holds_few_early_pictures_are_judged_by_others(
    backbone, forget, monkeypatch, items, own_bank
):
    monkeypatch.setattr("vdu.preparation.banks.fill_bank", fill_bank)
    preparation = Preparation(backbone, Clean(forget), seed=3, own_count=8, bank_items=items)
    judged = fill_bank(backbone, preparation.own_samples.x_0, 3, "judged", draws=12, t_range=(0.0, 0.5))
    early = fill_bank(backbone, forget, 3, "judged-forget", items=items, t_range=(0.0, 0.5))
    c = responsibilities(early if own_bank else preparation.forget_bank, judged, 3)
    torch.testing.assert_close(preparation.responsibilities, c, rtol=0, atol=0)


def test_a_run_makes_as_many_own_samples_and_fits_the_score_as_long_as_it_is_told(backbone, forget):
    few = Preparation(backbone, Clean(forget), seed=0, own_count=9, score_steps=1)
    more = Preparation(backbone, Clean(forget), seed=0, own_count=9, score_steps=2)
    assert len(few.own_samples.x_0) == 9
    assert weights_sha256(few.forget_score()) != weights_sha256(more.forget_score())
    with pytest.raises(VduError, match="own_samples"):
        make_settings(find_method("vdu"), {"own_samples": 7})


def test_the_score_is_fitted_at_the_times_at_which_it_is_asked(backbone, forget, monkeypatch):
    asked, add_noise = [], backbone.add_noise
    monkeypatch.setattr(backbone, "add_noise", lambda x_0, eps, t: asked.append(t) or add_noise(x_0, eps, t))
    preparation, found = Preparation(backbone, Clean(forget), seed=0, score_steps=3), {}
    for until in (1.0, 0.3):
        asked.clear()
        preparation.forget_score(until)
        found[until] = torch.cat(asked)
    assert len(found[1.0]) == len(found[0.3]) == 96
    assert int(found[1.0].max()) >= 0.9 * backbone.timesteps
    assert 0.25 * backbone.timesteps <= int(found[0.3].max()) < 0.3 * backbone.timesteps


def test_rho_has_the_share_as_its_mean_and_falls_to_it_where_noise_hides_the_image(clusters):
    forget, own, undesired = clusters
    head = fit_head(forget, own, undesired.float(), seed=0)
    rho = head(own.features, own.t_share).sigmoid().view(DRAWS, -1)
    assert float(rho.mean()) == pytest.approx(0.2, abs=0.04)
    early, late = (rho[k][undesired].mean() - rho[k][~undesired].mean() for k in (0, DRAWS - 1))
    assert early > 0.9 > late


def test_the_bayes_target_is_the_formula_item_by_item(backbone, forget):
    preparation = Preparation(backbone, Clean(forget), seed=0, own_count=8)
    head, bank = preparation.discriminator, preparation.own_bank
    undesired = preparation.forget_score()
    term = BayesTarget(backbone, bank, head, None, strength=3.0, rho_max=0.8).guide(undesired)
    network = backbone.trainable_copy()
    chosen = torch.randint(len(bank.t), (5,), generator=generator(1, "x"))
    total = 0.0
    for i in chosen.tolist():
        x_t, t = bank.x_t[i : i + 1], bank.t[i : i + 1]
        odds = 3.0 * float(head(bank.features[i : i + 1], bank.t_share[i : i + 1]).exp())
        rho = min(odds / (1 + odds), 0.8)
        with torch.no_grad():
            f_original, f_forget = backbone.network(x_t, t).sample, undesired(x_t, t).sample
            target = (f_original - rho * f_forget) / (1 - rho) if rho > 0.005 else f_original
            v_per_eps = min(1 / float(backbone.alpha_bar[t]), 20) / float((1 / backbone.alpha_bar).clamp(max=20).mean())
            error = multi_scale_error(network(x_t, t).sample - target, (1 / backbone.alpha_bar[t] - 1).sqrt())
            total += v_per_eps * (1 - rho) * float(error) / 5
    assert float(term(network, 5, generator(1, "x"))) == pytest.approx(total, rel=0.02, abs=1e-5)


def test_the_forget_score_is_asked_up_to_the_twentieth_that_leaves_a_hundredth_out():
    often, seldom = torch.full((99,), 0.62), torch.tensor([0.8])
    assert guided_until(often, seldom) == 0.65
    assert guided_until(often[1:], seldom) == guided_until(often, seldom, seldom) == 0.85
    assert guided_until(torch.tensor([0.999])) == 1.0
    assert guided_until(torch.zeros(0), torch.zeros(0)) == 0.0


def test_where_the_forget_score_is_not_asked_the_target_is_the_originals_output(backbone, forget):
    preparation = Preparation(backbone, Clean(forget), seed=0, own_count=8)
    bank, head, undesired = preparation.forget_bank, preparation.discriminator, preparation.forget_score()
    term, whole = (BayesTarget(backbone, bank, head, None).guide(undesired, until) for until in (0.5, 1.0))
    late = bank.t_share >= 0.5
    assert torch.equal(term.target[late], bank.original[late])
    torch.testing.assert_close(term.target[~late], whole.target[~late], atol=1e-3, rtol=1e-3)
    assert not torch.equal(whole.target[late], bank.original[late])


def test_an_error_of_the_output_weighs_what_it_does_to_v():
    alpha_bar = torch.linspace(0.94, 0.06, 40)  # 1/ᾱ and 1/(1 − ᾱ) under the largest weight
    x_t, v, v_off = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    a, s = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    outputs = {
        "epsilon": [a * y + s * x_t for y in (v, v_off)],
        "sample": [a * x_t - s * y for y in (v, v_off)],
        "v_prediction": [v, v_off],
    }
    for kind, (output, off) in outputs.items():
        weight = velocity_weight(alpha_bar, kind)
        assert float(weight.mean()) == pytest.approx(1)
        weighted = weight * (output - off).pow(2) / (v - v_off).pow(2)
        torch.testing.assert_close(weighted, weighted[:1].expand(40), rtol=1e-3, atol=0)
        bounded = velocity_weight(alpha_bar, kind, largest_snr=2.0)
        snr = alpha_bar / (1 - alpha_bar)
        torch.testing.assert_close(bounded / weight, (2 / snr).clamp(max=1))
        as_x_0 = bounded * {"epsilon": snr, "sample": torch.ones(40), "v_prediction": snr + 1}[kind] * alpha_bar
        torch.testing.assert_close(as_x_0[snr > 2], as_x_0[snr > 2][:1].expand(int((snr > 2).sum())))
    clean_end = torch.tensor([0.9999, 0.5])  # there 1/(1 − ᾱ) is over the largest weight, its bounded value is not
    ratio = velocity_weight(clean_end, "sample", 2.0)[0] / velocity_weight(clean_end, "sample")[1]
    assert float(ratio) == pytest.approx(1, rel=1e-2)
    at_noise = velocity_weight(torch.tensor([1.0, 1e-9]), "epsilon")
    assert float(at_noise[1] / at_noise[0]) == pytest.approx(20)


def test_the_weight_of_a_prompt_is_one_on_average_whatever_it_makes():
    rho = torch.tensor([0.9, 0.8, 0.1, 0.2, 0.5])
    weight = _weight(rho, torch.tensor([1, 1, 2, 2, 0]))
    torch.testing.assert_close(weight, torch.tensor([0.1 / 0.15, 0.2 / 0.15, 0.9 / 0.85, 0.8 / 0.85, 0.5]))
    torch.testing.assert_close(_weight(rho, None), 1 - rho)


def test_of_a_large_folder_so_many_images_are_judged_as_have_their_draws_in_the_bank(backbone):
    many = torch.rand(50, *backbone.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    preparation = Preparation(backbone, Clean(many), seed=3, own_count=8, bank_items=40)
    assert preparation.forget_bank.images == 10
    assert len(preparation.forget_bank.t) == 40
    few = many[[0, 5, 10, 16, 21, 27, 32, 38, 43, 49]]
    expected = fill_bank(backbone, few, 3, "forget", items=40)
    torch.testing.assert_close(preparation.forget_bank.x_t, expected.x_t, rtol=0, atol=0)
    preparation.forget_bank = fill_bank(backbone, few, 3, "forget", items=40, t_range=(0.6, 1.0))
    assert 0 < preparation.share < 1
