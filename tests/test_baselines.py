"""The baselines: fidelity to naive versions of their formulas, the contract, and needs that are refused."""

import math
import sys

import pytest
import torch
from conftest import make_pipeline
from PIL import Image

import vdu.discriminator
import vdu.guard
import vdu.loop
import vdu.preparation
from vdu import VduError, unlearn
from vdu.backbone import load_backbone
from vdu.bilevel import Bilevel
from vdu.cli import main
from vdu.denoising import Denoising
from vdu.gradients import gradients, trained
from vdu.methods import METHODS, find_method, make_settings
from vdu.methods.selective_amnesia import fisher_penalty
from vdu.model_zoo import find_zoo_model
from vdu.needs import check_needs
from vdu.plasticity import Guided
from vdu.posterior import isotropic, squared_gradients
from vdu.preparation import Preparation
from vdu.redirection import Redirection
from vdu.saliency import SaliencyMask, forget_gradient
from vdu.seeding import generator
from vdu.subtracted_scores import SubtractedScores, importance_weights
from vdu.surrogate import AnotherImage, AnotherNoise, one_of, uniform_images

BASELINES = ("finetune", "esd", "selective-amnesia", "salun", "erasediff", "siss", "retrack")
SHORT = {"steps": 4, "guard_every_steps": 2, "batch_size": 2, "stop_share": None}


@pytest.fixture
def retain():
    return torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.fixture
def preparation(backbone, forget, retain):
    return Preparation(backbone, forget, 0, own_count=6, given_share=0.2, given_retain=retain)


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
    preparation.given_teacher = teacher
    objective = METHODS["esd"].build(make_settings(METHODS["esd"], {"eta": 2.0}), preparation, teacher)
    assert isinstance(objective.plasticity, Guided)
    assert objective.plasticity.forget_score is teacher
    assert "forget_score" not in preparation.__dict__


def _run(method, forget, retain, **options):
    pipeline = make_pipeline()
    return unlearn(
        pipeline,
        forget,
        method,
        retain=retain if "retain" in METHODS[method].settings.needs else None,
        settings=SHORT | options.pop("settings", {}),
        posterior=isotropic(load_backbone(pipeline), 1e-2),
        share=0.2,
        precision="fp32",
        **options,
    )


@pytest.fixture
def few_samples(monkeypatch):
    """The least that the guard and the methods can work with, so that every method can be run several times."""
    monkeypatch.setattr("vdu.unlearning.Preparation", lambda *a, **k: Preparation(*a, **k, own_count=12))
    monkeypatch.setattr("vdu.unlearning.Guard", lambda *a: vdu.guard.Guard(*a, count=8, sampler_steps=2))
    score, fit, head = vdu.preparation.fit_forget_score, vdu.preparation.fit_discriminator, vdu.discriminator.fit_head
    monkeypatch.setattr("vdu.preparation.fit_forget_score", lambda *a, **k: score(*a, **k, steps=3))
    monkeypatch.setattr("vdu.preparation.fit_discriminator", lambda *a: fit(*a, bank_size=24))
    monkeypatch.setattr("vdu.discriminator.fit_head", lambda *a: head(*a, steps=10, batch_size=16))


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_resumed_run_equals_an_uninterrupted_one_and_the_sets_are_on_record(
    method, forget, retain, tmp_path, monkeypatch, few_samples
):
    whole = _run(method, forget, retain)
    assert all(math.isfinite(h["loss"]) for h in whole.record["history"])
    kept = whole.record["retain"]
    assert (kept is None) == ("retain" not in METHODS[method].settings.needs)
    assert kept is None or (kept["images"], len(kept["sha256"])) == (9, 64)
    save = vdu.loop.save_state

    def save_and_stop(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(vdu.loop, "save_state", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            _run(method, forget, retain, state_folder=tmp_path)
    resumed = _run(method, forget, retain, state_folder=tmp_path)
    assert resumed.record["result_sha256"] == whole.record["result_sha256"]
    assert len(resumed.record["history"]) == 4


@pytest.mark.parametrize("method", sorted(METHODS))
def test_only_chosen_parameters_move_and_the_seed_matters(method, forget, retain, few_samples):
    settings = {"parameters": "mid_block.*", "steps": 1, "ema_decay": 0.0, "learning_rate": 1e-6}
    first, second = (_run(method, forget, retain, settings=settings, seed=seed) for seed in (0, 1))
    before = dict(first.original.network.named_parameters())
    moved = {n for n, p in first.pipeline.unet.named_parameters() if not torch.equal(p, before[n])}
    assert all(name.startswith("mid_block.") for name in moved)
    assert moved or first.record["best_step"] == 0
    assert first.record["history"][0]["loss"] != second.record["history"][0]["loss"]


def test_bf16_gradients_point_where_those_of_fp32_do(preparation, few_samples):
    for method in BASELINES:
        found = []
        for precision in ("fp32", "bf16"):
            network = preparation.backbone.trainable_copy()
            objective = METHODS[method].build(METHODS[method].settings(), preparation, network)
            objective.gradient(network, 8, torch.Generator().manual_seed(0), precision)
            found.append(torch.cat([p.grad.flatten() for p in trained(network)]))
        assert float(torch.cosine_similarity(*found, dim=0)) > 0.95, method


def test_a_resume_with_another_retain_set_is_refused(forget, retain, tmp_path, few_samples):
    _run("finetune", forget, retain, state_folder=tmp_path)
    with pytest.raises(VduError, match="other settings"):
        _run("finetune", forget, retain[:5], state_folder=tmp_path)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_missing_need_names_the_option_to_give(method):
    given = dict.fromkeys(METHODS[method].settings.needs, "something")
    check_needs(METHODS[method], given)
    for need in given:
        with pytest.raises(VduError, match=f"method {method} needs .*--{need}"):
            check_needs(METHODS[method], given | {need: None})


def test_what_would_not_be_used_and_what_contradicts_is_refused(forget, retain):
    with pytest.raises(VduError, match="makes no use of --retain"):
        unlearn(make_pipeline(), forget, "vdu", retain=retain)
    with pytest.raises(VduError, match="2 of the images to keep are images to forget too"):
        unlearn(make_pipeline(), forget, "finetune", retain=torch.cat([retain, forget[:2]]))
    with pytest.raises(VduError, match="the retain tensor is"):
        unlearn(make_pipeline(), forget, "finetune", retain=retain[..., :4])
    with pytest.raises(VduError, match="the teacher predicts v_prediction"):
        unlearn(make_pipeline(), forget, "esd", teacher=make_pipeline("v_prediction"))


def _vdu(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["vdu", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    captured = capsys.readouterr()
    return left.value.code or 0, captured.out, captured.err


def _folder(path, shades):
    path.mkdir()
    for shade in shades:
        Image.new("L", (8, 8), shade).save(path / f"{shade}.png")
    return path


def test_the_command_line_takes_a_retain_folder_and_refuses_without(tmp_path, monkeypatch, capsys, few_samples):
    make_pipeline().save_pretrained(tmp_path / "model")
    bad, good = _folder(tmp_path / "bad", (200, 210, 220)), _folder(tmp_path / "good", (10, 20, 30, 40))
    out = tmp_path / "clean"
    basic = ("unlearn", tmp_path / "model", "--forget", bad, "--out", out, "--method", "siss", "--share", "0.3")
    code, _, err = _vdu(monkeypatch, capsys, *basic)
    assert code == 2
    assert err.strip() == "vdu: method siss needs images to keep: give --retain FOLDER"
    code, _, err = _vdu(monkeypatch, capsys, *basic, "--retain", tmp_path / "absent")
    assert code == 2
    assert "give --retain a folder" in err
    assert not out.exists()
    short = ("--set", "steps=1", "--precision", "fp32")
    code, _, err = _vdu(monkeypatch, capsys, *basic, "--retain", good, *short)
    assert code == 0, err
    assert "images to keep | 4" in (out / "README.md").read_text()


def test_a_shipped_model_brings_images_of_the_other_classes():
    kept = find_zoo_model("mnist").retain("3")
    assert len(kept) == 900
    assert {path.parent.name for path in kept} == set("012456789")


def test_methods_are_listed_with_their_needs(monkeypatch, capsys):
    code, out, _ = _vdu(monkeypatch, capsys, "methods")
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert set(lines) == set(METHODS)
    assert "forget, retain" in lines["siss"]
    assert "[teacher]" in lines["esd"]
