"""The baselines against naive versions of their formulas."""

import math

import pytest
import torch
from conftest import make_pipeline

from vdu import VduError
from vdu.backbone import load_backbone
from vdu.diffusion.denoising import Denoising
from vdu.diffusion.noising import Clean
from vdu.methods import METHODS, find_method, make_settings
from vdu.methods.selective_amnesia import fisher_penalty
from vdu.objective.bilevel import Bilevel
from vdu.objective.plasticity import Guided
from vdu.objective.redirection import Redirection
from vdu.objective.replay import replayed_samples
from vdu.objective.saliency import SaliencyMask, forget_gradient
from vdu.objective.subtracted_scores import SubtractedScores, importance_weights
from vdu.objective.surrogate import AnotherImage, AnotherNoise, one_of, uniform_images
from vdu.posterior import squared_gradients
from vdu.preparation.preparation import Preparation
from vdu.seeding import generator
from vdu.weights.gradients import gradients, trained

BASELINES = ("finetune", "esd", "selective-amnesia", "salun", "erasediff", "siss", "retrack")


@pytest.fixture
def preparation(backbone, forget, retain):
    return Preparation(backbone, Clean(forget), 0, own_count=6, given_share=0.2, given_retain=Clean(retain))


def _one(backbone, image, g):
    """Time, noise and noised image of one image, drawn as the terms draw them for a batch of one."""
    t = torch.randint(backbone.timesteps, (1,), generator=g)
    eps = torch.randn(1, *image.shape, generator=g)
    a = backbone.alpha_bar[t].view(1, 1, 1, 1)
    return t, eps, a.sqrt() * image + (1 - a).sqrt() * eps, float(a)


def _predicted(network, x_t, t):
    return network(x_t, t).sample


def _first(images, g):
    return images[int(torch.randint(len(images), (1,), generator=g))]


def _seeds(count=6):
    return [torch.Generator().manual_seed(i) for i in range(count)]


def test_denoising_is_the_mean_squared_noise_error(backbone, retain):
    for g, again in zip(_seeds(), _seeds(), strict=True):
        t, eps, x_t, _ = _one(backbone, _first(retain, g), g)
        naive = ((_predicted(backbone.network, x_t, t) - eps) ** 2).mean()
        torch.testing.assert_close(Denoising(backbone, retain)(backbone.network, 1, again), naive)


def test_another_image_is_the_clean_image_error_times_alpha_bar(backbone, forget, retain):
    for source in (uniform_images, one_of(retain)):
        for g, again in zip(_seeds(), _seeds(), strict=True):
            t, _, x_t, a = _one(backbone, _first(forget, g), g)
            u = source((1, 1, 8, 8), g)
            x_0 = (x_t - math.sqrt(1 - a) * _predicted(backbone.network, x_t, t)) / math.sqrt(a)
            naive = a * ((x_0 - u) ** 2).mean()
            found = AnotherImage(backbone, forget, source)(backbone.network, 1, again)
            torch.testing.assert_close(found, naive, rtol=1e-3, atol=1e-5)


def test_another_noise_is_a_regression_on_uniform_noise(backbone, forget):
    for g, again in zip(_seeds(), _seeds(), strict=True):
        t, _, x_t, _ = _one(backbone, _first(forget, g), g)
        other = torch.rand(1, 1, 8, 8, generator=g)
        naive = ((_predicted(backbone.network, x_t, t) - other) ** 2).mean()
        torch.testing.assert_close(AnotherNoise(backbone, forget)(backbone.network, 1, again), naive)


def test_importance_weights_are_the_density_ratios():
    """In one dimension the densities can be written down."""
    signal, noise, lam, x, a = 0.8, 0.6, 0.3, -0.5, 0.9
    m = torch.linspace(-2, 2, 21).double()
    q = lambda mean: torch.distributions.Normal(signal * mean, noise).log_prob(m).exp()  # noqa: E731
    mixture = (1 - lam) * q(torch.tensor(x)) + lam * q(torch.tensor(a))
    log_ratio = 0.5 * (((m - signal * x) / noise) ** 2 - ((m - signal * a) / noise) ** 2)
    w_x, w_a = importance_weights(log_ratio, lam)
    torch.testing.assert_close(w_x, q(torch.tensor(x)) / mixture, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(w_a, q(torch.tensor(a)) / mixture, rtol=1e-5, atol=1e-6)
    far_x, far_a = importance_weights(torch.tensor([-1e6, 1e6]), lam)
    torch.testing.assert_close(far_x, torch.tensor([1 / (1 - lam), 0.0]))
    torch.testing.assert_close(far_a, torch.tensor([0.0, 1 / lam]))


def test_subtracted_scores_equal_a_single_sample_version(backbone, forget, retain):
    scores = SubtractedScores(backbone, retain, forget, mixture=0.4, share=0.1)
    sides = set()
    for g, again in zip(_seeds(12), _seeds(12), strict=True):
        x, a = _first(retain, g), _first(forget, g)
        t = torch.randint(backbone.timesteps, (1,), generator=g)
        eps = torch.randn(1, 1, 8, 8, generator=g)
        from_a = bool(torch.rand(1, generator=g) < 0.4)
        sides.add(from_a)
        bar = float(backbone.alpha_bar[t])
        m = math.sqrt(bar) * (a if from_a else x) + math.sqrt(1 - bar) * eps
        eps_x, eps_a = ((m - math.sqrt(bar) * image) / math.sqrt(1 - bar) for image in (x, a))
        ratio = float((0.5 * (eps_x**2 - eps_a**2)).sum().double().clamp(-700, 700).exp())
        w_x, w_a = 1 / (0.6 + 0.4 * ratio), 1 / (0.6 / ratio + 0.4)
        predicted = _predicted(backbone.network, m, t)
        found = scores.losses(backbone.network, 1, again)
        torch.testing.assert_close(
            float(found[0]), w_x * float(((predicted - eps_x) ** 2).mean()), rtol=1e-3, atol=1e-5
        )
        torch.testing.assert_close(
            float(found[1]), w_a * float(((predicted - eps_a) ** 2).mean()), rtol=1e-3, atol=1e-5
        )
    assert sides == {True, False}


def _norm(tensors):
    return math.sqrt(sum(float((t**2).sum()) for t in tensors))


def test_the_ascent_is_held_at_its_share_of_the_descent(backbone, forget, retain):
    network, scores = backbone.trainable_copy(), SubtractedScores(backbone, retain, forget, mixture=0.5, share=0.1)
    descent, ascent = scores.losses(network, 4, torch.Generator().manual_seed(0))
    g_x, g_a = gradients(descent, trained(network), keep_graph=True), gradients(ascent, trained(network))
    scores.gradient(network, 4, torch.Generator().manual_seed(0), "fp32")
    taken = [x - p.grad for x, p in zip(g_x, trained(network), strict=True)]
    assert _norm(taken) == pytest.approx(0.1 * _norm(g_x), rel=1e-3)
    assert sum(float((s * g).sum()) for s, g in zip(taken, g_a, strict=True)) > 0


def test_redirection_equals_a_loop_over_the_nearest_images(backbone, forget, retain):
    term = Redirection(backbone, forget, retain, neighbours=3)
    for g, again in zip(_seeds(), _seeds(), strict=True):
        image = _first(forget, g)
        t, _, x_t, a = _one(backbone, image, g)
        nearest = sorted(retain, key=lambda kept: float(((kept - image) ** 2).sum()))[:3]
        ways = [(x_t - math.sqrt(a) * x_k) / math.sqrt(1 - a) for x_k in nearest]
        heights = [-0.5 * float((e**2).sum()) for e in ways]
        odds = [math.exp(h - max(heights)) for h in heights]
        predicted = _predicted(backbone.network, x_t, t)
        errors = [float(((predicted - e) ** 2).mean()) for e in ways]
        naive = sum(o / sum(odds) * error for o, error in zip(odds, errors, strict=True))
        assert float(term(backbone.network, 1, again)) == pytest.approx(naive, rel=1e-3)


def test_saliency_keeps_the_half_that_the_forget_loss_feels_most(backbone, forget):
    network = backbone.trainable_copy()
    found = forget_gradient(backbone, network, forget, seed=3)
    g = generator(3, "saliency", 0)
    t, eps = torch.randint(backbone.timesteps, (6,), generator=g), torch.randn(forget.shape, generator=g)
    naive = [torch.zeros_like(p) for p in trained(network)]
    for i in range(6):
        x_t = backbone.add_noise(forget[i : i + 1], eps[i : i + 1], t[i : i + 1])
        loss = ((_predicted(network, x_t, t[i : i + 1]) - eps[i : i + 1]) ** 2).mean()
        naive = [n + s for n, s in zip(naive, torch.autograd.grad(loss, trained(network)), strict=True)]
    for one, other in zip(found, naive, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)
    mask = SaliencyMask(network, found, 0.5)
    kept = torch.cat([m.flatten() for m in mask.masks])
    sizes = torch.cat([f.abs().flatten() for f in found])
    assert float(kept.double().mean()) == pytest.approx(0.5, abs=1e-3)
    assert sizes[kept].min() >= sizes[~kept].max()


def test_salun_is_not_trained_by_what_would_move_masked_parameters():
    with pytest.raises(VduError, match="optimizer"):
        make_settings(find_method("salun"), {"optimizer": "muon"})


def test_salun_moves_salient_parameters_only(preparation):
    settings = make_settings(find_method("salun"), {"salient_share": 0.1})
    network = preparation.backbone.trainable_copy()
    objective = METHODS["salun"].build(settings, preparation, network)
    objective.gradient(network, 4, torch.Generator().manual_seed(0), "fp32")
    moved = torch.cat([(p.grad != 0).flatten() for p in trained(network)])
    assert 0 < float(moved.double().mean()) <= 0.101


def test_fisher_penalty_equals_a_double_loop(backbone, retain):
    found = squared_gradients(backbone, retain[:3], seed=5)
    network = backbone.trainable_copy().eval()
    naive = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in network.named_parameters()}
    for i in range(3):
        t, eps, x_t, _ = _one(backbone, retain[i], generator(5, "fisher", i))
        loss = 0.5 * ((_predicted(network, x_t, t) - eps) ** 2).sum()
        for (name, _), slope in zip(
            network.named_parameters(), torch.autograd.grad(loss, network.parameters()), strict=True
        ):
            naive[name] += slope.double() ** 2
    for name in naive:
        torch.testing.assert_close(found[name], naive[name])
    penalty, offset = fisher_penalty(network, found), 0.01
    for p in network.parameters():
        p.data += offset
        p.grad = torch.zeros_like(p)
    assert penalty.value() == pytest.approx(sum(float(f.sum()) for f in naive.values()) * offset**2, rel=1e-2)
    penalty.add_gradient(10.0)
    for name, p in network.named_parameters():
        torch.testing.assert_close(p.grad, (10 * 2 * naive[name] * offset).float(), rtol=1e-2, atol=1e-4)


def test_selective_amnesia_is_the_gradient_of_its_three_terms(preparation, few_samples):
    backbone, own = preparation.backbone, replayed_samples(preparation)
    network = backbone.trainable_copy()
    settings = make_settings(METHODS["selective-amnesia"], {"replay": 0.7, "fisher_weight": 5.0})
    objective = METHODS["selective-amnesia"].build(settings, preparation, network)
    old = [p.detach().clone() for p in trained(network)]
    for p in trained(network):
        p.data += 0.01
    squared = [torch.zeros_like(p) for p in old]
    for i, image in enumerate(own.x_0):
        t, eps, x_t, _ = _one(backbone, image, generator(0, "fisher", i))
        loss = ((_predicted(backbone.network.requires_grad_(True), x_t, t) - eps) ** 2).sum()
        slopes = torch.autograd.grad(loss, backbone.network.parameters())
        squared = [s + slope**2 / len(own) for s, slope in zip(squared, slopes, strict=True)]
    backbone.network.requires_grad_(False)
    g = torch.Generator().manual_seed(6)
    naive = AnotherImage(backbone, preparation.forget, uniform_images)(network, 3, g)
    naive = naive + 0.7 * Denoising(backbone, own)(network, 3, g)
    for p, anchor, f in zip(trained(network), old, squared, strict=True):
        naive = naive + 5.0 / 64 * (f * (p - anchor) ** 2).sum()
    wanted = torch.autograd.grad(naive, trained(network))
    objective.gradient(network, 3, torch.Generator().manual_seed(6), "fp32")
    for p, slope in zip(trained(network), wanted, strict=True):
        torch.testing.assert_close(p.grad, slope, rtol=1e-2, atol=1e-4)


def test_retrack_weighs_redirection_by_lambda(preparation):
    settings = make_settings(METHODS["retrack"], {"redirect": 0.02, "neighbours": 3})
    network, (g, again) = preparation.backbone.trainable_copy(), (torch.Generator().manual_seed(1) for _ in range(2))
    objective = METHODS["retrack"].build(settings, preparation, network)
    away = Redirection(preparation.backbone, preparation.forget, preparation.retain, 3)(network, 4, g)
    naive = 0.02 * away + 0.98 * Denoising(preparation.backbone, preparation.retain)(network, 4, g)
    torch.testing.assert_close(objective.loss(network, 4, again), naive)


def _naive_bilevel(network, erasing, keeping, eta, rate, steps):
    """The step written out: K inner steps on copies, restore, λ, g_r + λ g_f."""
    start = [p.detach().clone() for p in trained(network)]
    for _ in range(steps):
        slopes = torch.autograd.grad(erasing(), trained(network))
        for p, slope in zip(trained(network), slopes, strict=True):
            p.data -= rate * slope
    reached = float(erasing().detach())
    for p, old in zip(trained(network), start, strict=True):
        p.data.copy_(old)
    g_f = torch.autograd.grad(erasing(), trained(network))
    g_r = torch.autograd.grad(keeping(), trained(network))
    product = sum(float((r * f).sum()) for r, f in zip(g_r, g_f, strict=True))
    lam = max(0.0, eta - product / _norm(g_f) ** 2) if float(erasing().detach()) > reached else 0.0
    return [r + lam * f for r, f in zip(g_r, g_f, strict=True)], lam


@pytest.mark.parametrize("eta", [0.1, 2.0])
def test_bilevel_step_equals_the_step_written_out(backbone, forget, retain, eta):
    network, forgetting, keeping = (
        backbone.trainable_copy(),
        AnotherNoise(backbone, forget),
        Denoising(backbone, retain),
    )
    start = [p.detach().clone() for p in trained(network)]
    step = Bilevel(forgetting, keeping, inner_steps=2, inner_rate=1e-2, eta=eta)
    step.gradient(network, 3, torch.Generator().manual_seed(4), "fp32")
    assert all(torch.equal(p, old) for p, old in zip(trained(network), start, strict=True))
    g = torch.Generator().manual_seed(4)
    batch, drawn = int(torch.randint(2**31, (1,), generator=g)), g.get_state()
    naive, lam = _naive_bilevel(
        network,
        lambda: forgetting(network, 3, torch.Generator().manual_seed(batch)),
        lambda: keeping(network, 3, torch.Generator().set_state(drawn)),
        eta,
        1e-2,
        2,
    )
    assert lam > 0 or eta < 1
    for p, wanted in zip(trained(network), naive, strict=True):
        torch.testing.assert_close(p.grad, wanted, atol=1e-5, rtol=1e-3)


def test_esd_uses_the_teacher_that_was_given(preparation):
    teacher = load_backbone(make_pipeline(seed=7)).network
    preparation.given_teacher, stages = teacher, []
    preparation.on_stage = stages.append
    objective = METHODS["esd"].build(make_settings(METHODS["esd"], {"eta": 2.0}), preparation, teacher)
    assert isinstance(objective.plasticity, Guided)
    assert objective.plasticity.forget_score is teacher
    assert not any("score" in stage for stage in stages)


def test_bf16_gradients_point_where_those_of_fp32_do(preparation, few_samples):
    for method in BASELINES:
        found = []
        for precision in ("fp32", "bf16"):
            network = preparation.backbone.trainable_copy()
            objective = METHODS[method].build(METHODS[method].settings(), preparation, network)
            objective.gradient(network, 8, torch.Generator().manual_seed(0), precision)
            found.append(torch.cat([p.grad.flatten() for p in trained(network)]))
        assert float(torch.cosine_similarity(*found, dim=0)) > 0.95, method
