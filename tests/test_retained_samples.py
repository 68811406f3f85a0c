"""What own samples say of ρ, of the way from the undesired and of what remains: against loops, at the ends, in use."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import make_pipeline

from vdu.backbone import load_backbone
from vdu.diffusion.noising import Clean
from vdu.methods import find_method, make_settings
from vdu.objective.bayes_target import BayesTarget, guided_until, velocity_weight
from vdu.preparation.preparation import Preparation
from vdu.preparation.retained_samples import RetainedSamples

pytestmark = pytest.mark.usefixtures("few_head_steps")


def naive_retained_mean(x_t: torch.Tensor, alpha_bar: float, own: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """x̂_0 of one ``x_t``: the formula of `vdu.preparation.retained_samples` as a loop."""
    pairs = [(x, 1 - float(w)) for x, w in zip(own.double(), c, strict=True) if w < 0.5]
    logs = [
        math.log(w) - float((x_t.double() - alpha_bar**0.5 * x).square().sum()) / (2 * (1 - alpha_bar))
        for x, w in pairs
    ]
    weights = [math.exp(log - max(logs)) for log in logs]
    return sum(w * x for w, (x, _) in zip(weights, pairs, strict=True)) / sum(weights)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_retained_samples_say_the_score_of_their_mixture_whatever_the_network_predicts(kind):
    b = load_backbone(make_pipeline(kind))
    own = torch.randn(6, *b.shape, generator=torch.Generator().manual_seed(0))
    c, t = torch.tensor([0.0, 0.4, 0.2, 0.5, 1, 0]), torch.tensor([2, 20, 47])
    x_t = b.add_noise(own[[3, 1, 4]], torch.randn(3, *b.shape, generator=torch.Generator().manual_seed(1)), t)
    retained = RetainedSamples(b, own, c)
    said = b.to_eps(retained.output(x_t, t), x_t, t)
    assert len(retained) == 4
    for i in range(3):
        alpha_bar = float(b.alpha_bar[t[i]])
        mean = naive_retained_mean(x_t[i], alpha_bar, own, c)
        eps = (x_t[i].double() - alpha_bar**0.5 * mean) / (1 - alpha_bar) ** 0.5
        torch.testing.assert_close(said[i], eps.float(), rtol=1e-3, atol=1e-3)


def naive_guidance(x_t: torch.Tensor, alpha_bar: float, own: torch.Tensor, c: torch.Tensor) -> tuple[float, ...]:
    """How many are possible, ρ, and ρ/(1 − ρ) times x̂_0 less the undesired part's: the formulas as a loop."""
    logs = [-float((x_t.double() - alpha_bar**0.5 * x).square().sum()) / (2 * (1 - alpha_bar)) for x in own.double()]
    v = [math.exp(log - max(logs)) for log in logs]
    v = [one / sum(v) for one in v]
    rho = sum(one * float(w) for one, w in zip(v, c, strict=True))
    mean = sum(one * x for one, x in zip(v, own.double(), strict=True))
    undesired = sum(one * float(w) / rho * x for one, w, x in zip(v, c, own.double(), strict=True))
    return 1 / sum(one**2 for one in v), rho, rho / (1 - rho) * (mean - undesired)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_own_samples_say_how_much_is_undesired_and_which_way_leads_from_it(kind):
    b = load_backbone(make_pipeline(kind))
    own = 0.1 * torch.randn(6, *b.shape, generator=torch.Generator().manual_seed(0))
    c, t = torch.tensor([0.0, 0.4, 0.2, 0.5, 1, 0]), torch.tensor([20, 35, 47])
    x_t = b.add_noise(own[[3, 1, 4]], torch.randn(3, *b.shape, generator=torch.Generator().manual_seed(1)), t)
    retained = RetainedSamples(b, own, c)
    possible, rho, way = retained.guidance(x_t, t)
    original = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(2))
    leads = (b.to_eps(original + way, x_t, t) - b.to_eps(original, x_t, t)).double()
    for i in range(3):
        a = float(b.alpha_bar[t[i]])
        expected_possible, expected_rho, difference = naive_guidance(x_t[i], a, own, c)
        assert float(possible[i]) == pytest.approx(expected_possible, rel=1e-4)
        assert float(rho[i]) == pytest.approx(expected_rho, rel=1e-4)
        torch.testing.assert_close(leads[i], -difference * (a / (1 - a)) ** 0.5, rtol=1e-3, atol=1e-5)
    assert 2 < float(possible[2]) <= 6


@pytest.mark.parametrize("c", [0.0, 1.0])
def test_where_nothing_is_undesired_or_everything_is_own_samples_lead_nowhere(backbone, c):
    own = torch.randn(5, *backbone.shape, generator=torch.Generator().manual_seed(0))
    x_t, t = torch.randn(2, *backbone.shape, generator=torch.Generator().manual_seed(1)), torch.tensor([10, 40])
    _, rho, way = RetainedSamples(backbone, own, torch.full((5,), c)).guidance(x_t, t)
    assert rho.tolist() == pytest.approx([c, c])
    assert float(way.abs().max()) < 1e-6


def test_retained_samples_lead_from_an_undesired_sample_to_one_that_remains(backbone):
    own = torch.randn(5, *backbone.shape, generator=torch.Generator().manual_seed(0))
    retained = RetainedSamples(backbone, own, torch.tensor([0.999, 0.2, 0.2, 0.2, 0.2]))
    nearest = int((own[1:] - own[0]).square().sum((1, 2, 3)).argmin())
    early = retained.x_0_hat(own[:1], torch.tensor([0])).float()
    torch.testing.assert_close(early[0], own[1 + nearest], atol=1e-3, rtol=0)


def middle_of_rho(preparation: Preparation) -> float:
    """Between the two middle values of ρ at strength 1 in the bank of own samples."""
    bank = preparation.own_bank
    ordered = preparation.discriminator(bank.features, bank.t_share).sigmoid().sort().values
    middle = len(ordered) // 2
    return float(ordered[middle - 1 : middle + 1].mean())


def test_where_rho_reaches_its_bound_the_target_is_what_retained_samples_say(backbone, forget):
    preparation = Preparation(backbone, Clean(forget), seed=0, own_count=8, score_steps=1)
    head, bank, undesired = preparation.discriminator, preparation.own_bank, preparation.forget_score()
    retained = RetainedSamples(backbone, preparation.own_samples.x_0, torch.arange(8) / 8)
    bound = middle_of_rho(preparation)
    plain = BayesTarget(backbone, bank, head, None, rho_max=bound).guide(undesired)
    term = BayesTarget(backbone, bank, head, None, rho_max=bound, retained=retained).guide(undesired)
    at_bound = head(bank.features, bank.t_share).sigmoid() >= bound
    assert 0 < int(at_bound.sum()) < len(bank.t)
    said = retained.output(bank.x_t, bank.t)
    torch.testing.assert_close(term.target[at_bound].float(), said[at_bound], atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(term.target[~at_bound], plain.target[~at_bound], atol=2e-2, rtol=1e-2)
    assert float((term.target[at_bound] - plain.target[at_bound]).abs().max()) > 0.1
    snr = (backbone.alpha_bar / (1 - backbone.alpha_bar))[bank.t]
    bounded = torch.where(at_bound, (2 / snr).clamp(max=1), 1.0)
    assert 0 < float(bounded.min()) < 0.5
    torch.testing.assert_close(term.weight, bounded * plain.weight)


@pytest.mark.parametrize(
    "c",
    [torch.arange(24) / 23, torch.tensor([1.0] + 23 * [0.0]), torch.tensor([0.0] + 23 * [0.97])],
    ids=["spread", "one undesired", "over the bound"],
)
def test_where_many_own_samples_are_possible_rho_and_the_target_are_theirs_whatever_the_strength(backbone, forget, c):
    preparation = Preparation(backbone, Clean(forget), seed=0, own_count=24, score_steps=1)
    head, bank, undesired = preparation.discriminator, preparation.own_bank, preparation.forget_score()
    own = 0.02 * preparation.own_samples.x_0  # so like each other that noise hides which it was
    retained = RetainedSamples(backbone, own, c)
    possible, rho, way = retained.guidance(bank.x_t, bank.t)
    many = possible >= 8
    assert 0.05 < float(many.double().mean()) < 0.95
    plain, term, strong = (
        BayesTarget(backbone, bank, head, None, strength=strength, rho_max=0.8, retained=given).guide(undesired)
        for strength, given in ((1.0, None), (1.0, retained), (4.0, retained))
    )
    torch.testing.assert_close(term.rho[many], rho[many].clamp(max=0.8))
    torch.testing.assert_close(term.target[many].float(), (bank.original + way)[many], atol=2e-3, rtol=2e-3)
    assert torch.equal(term.target[many], strong.target[many])
    of_time = velocity_weight(backbone.alpha_bar, backbone.prediction_type)[bank.t]
    torch.testing.assert_close(term.weight[many], ((1 - term.rho) * of_time)[many])
    elsewhere = ~many & (term.rho < 0.8)
    torch.testing.assert_close(term.rho[elsewhere], plain.rho[elsewhere])
    torch.testing.assert_close(term.target[elsewhere], plain.target[elsewhere], atol=1e-2, rtol=1e-2)
    assert not torch.equal(term.target[elsewhere], strong.target[elsewhere])
    assert torch.equal(term.guided_times, bank.t_share[elsewhere & (term.rho > 0.005)])
    assert guided_until(term.guided_times) < guided_until(plain.guided_times) == 1


def test_retained_samples_are_none_where_few_are_left(backbone, forget):
    def made(c: float, count: int) -> RetainedSamples | None:
        preparation = Preparation(backbone, Clean(forget), seed=0, own_count=count)
        preparation.__dict__["responsibilities"] = torch.full((count,), c)
        preparation.__dict__["own_samples"] = Clean(torch.randn(count, *backbone.shape))
        return preparation.retained_samples

    assert made(0.9, 20) is None
    assert made(0.1, 15) is None
    kept = made(0.1, 16)
    assert kept is not None
    assert len(kept) == 16


def test_the_method_aims_at_retained_samples_where_rho_reaches_its_bound_unless_told_not_to(backbone, forget):
    preparation = Preparation(backbone, Clean(forget), seed=0, own_count=24, score_steps=1)
    preparation.__dict__["responsibilities"] = torch.arange(24) / 40
    targets, bound = [], middle_of_rho(preparation)
    for settings in ({}, {"retained_samples": False}):
        made = make_settings(find_method("vdu"), {"strength": 1.0, "rho_max": bound, **settings})
        targets.append(find_method("vdu").build(made, preparation, backbone.trainable_copy()))
    for redirected, plain in zip(*((o.plasticity, o.stability) for o in targets), strict=True):
        differs = (redirected.target - plain.target).abs().flatten(1).amax(1) > 0.05
        assert torch.equal(differs, redirected.rho >= bound)
    share = float((targets[0].stability.rho >= bound).double().mean())
    assert share == 0.5
