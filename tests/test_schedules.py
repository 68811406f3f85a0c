"""Weights, rates, times and averages of training against closed forms and naive loops."""

import math

import pytest
import torch
from conftest import make_pipeline
from diffusers import DDPMScheduler

from vdu.diffusion.stratified_times import stratified_shares, times_at
from vdu.diffusion.training_loss import min_snr_weight, training_loss
from vdu.seeding import generator
from vdu.training.denoiser import cycled_learning_rate
from vdu.training.recipe import read_recipe
from vdu.weights.ema import ema_update
from vdu.weights.schedules import cosine_to_zero

GAMMA = 5.0
KINDS = ["epsilon", "v_prediction", "sample"]


def _answer(kind, x, eps, alpha_bar):
    """What a network of this ``kind`` is to say of one image."""
    v = math.sqrt(alpha_bar) * eps - math.sqrt(1 - alpha_bar) * x
    return {"epsilon": eps, "v_prediction": v, "sample": x}[kind]


def test_the_cosine_goes_from_one_over_a_half_to_zero():
    assert [cosine_to_zero(s, 8) for s in (0, 4, 8)] == pytest.approx([1, 0.5, 0])
    assert cosine_to_zero(2, 8) == pytest.approx(math.cos(math.pi / 8) ** 2)


def test_stratified_times_put_equally_many_in_each_part():
    share = stratified_shares(10, generator(0), each=3)
    assert (share * 10).long().tolist() == [k for k in range(10) for _ in range(3)]
    assert len(set(share.tolist())) == 30
    assert times_at(torch.tensor([0.0, 0.4999, 0.5, 1.0]), 4).tolist() == [0, 1, 2, 3]


def test_the_rate_warms_up_and_falls_in_each_cycle():
    settings = read_recipe("mnist").training.model_copy(update={"cycle_steps": [6, 4], "warmup_steps": 2})
    r = settings.learning_rate
    found = [cycled_learning_rate(settings, s) for s in range(10)]
    first = [r * min(1, (s + 1) / 2) * math.cos(math.pi * s / 12) ** 2 for s in range(6)]
    second = [r * min(1, (s + 1) / 2) * math.cos(math.pi * s / 8) ** 2 for s in range(4)]
    assert found == pytest.approx(first + second)
    without = settings.model_copy(update={"warmup_steps": 0})
    assert cycled_learning_rate(without, 6) == pytest.approx(r)


def test_the_average_is_that_of_a_naive_loop_and_ramps_up():
    torch.manual_seed(0)
    average, model = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    naive = average.weight.detach().clone()
    for step in range(30):
        model.weight.data.normal_()
        model.running_mean.normal_()
        ema_update(average, model, 0.7, step)
        d = min(0.7, (1 + step) / (10 + step))
        naive = d * naive + (1 - d) * model.weight.data
        torch.testing.assert_close(average.weight.data, naive)
    assert torch.equal(average.running_mean, model.running_mean)


def test_the_weight_is_one_up_to_gamma_and_the_same_loss_in_x_0_for_every_kind():
    alpha_bar = torch.tensor([0.0, 0.01, 0.5, 5 / 6, 0.99])
    snr = [a / (1 - a) for a in alpha_bar.tolist()]
    eps, v, sample = (min_snr_weight(alpha_bar, GAMMA, kind) for kind in KINDS)
    assert sample.tolist() == pytest.approx([min(s, GAMMA) for s in snr], rel=1e-5)
    assert v.tolist() == pytest.approx([min(s, GAMMA) / (s + 1) for s in snr], rel=1e-5)
    assert eps[1:].tolist() == pytest.approx([min(s, GAMMA) / s for s in snr[1:]], rel=1e-5)
    # ‖Δε‖² = SNR ‖Δx_0‖² and ‖Δv‖² = (SNR + 1) ‖Δx_0‖².
    torch.testing.assert_close(eps * torch.tensor(snr), sample, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(v * (torch.tensor(snr) + 1), sample, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_a_naive_loop(kind):
    scheduler = DDPMScheduler(num_train_timesteps=50, prediction_type=kind)
    network, x, seen = make_pipeline().unet, torch.randn(6, 1, 8, 8), []

    def predict(x_t, t):
        seen.append((x_t, t))
        return network(x_t, t).sample

    found = training_loss(predict, scheduler, x, GAMMA, generator(1))
    ((x_t, t),), total = seen, 0.0
    for i in range(6):
        a = float(scheduler.alphas_cumprod[t[i]])
        eps = (x_t[i] - math.sqrt(a) * x[i]) / math.sqrt(1 - a)
        off = network(x_t[i : i + 1], t[i : i + 1]).sample[0] - _answer(kind, x[i], eps, a)
        snr = a / (1 - a)
        weight = min(snr, GAMMA) / {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}[kind]
        total += weight * float(off.detach().pow(2).mean()) / 6
    assert float(found.detach()) == pytest.approx(total, rel=1e-3)
