"""Formulas against closed forms and naive loops."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_pipeline

from vdu.backbone import load_backbone
from vdu.diffusion.noised_bank import NoisedBank
from vdu.diffusion.noising import draw
from vdu.diffusion.sampling import sample
from vdu.evaluation.metrics import frechet_distance, kernel_distance, pul, share_interval
from vdu.objective.bayes_target import BayesTarget, retained_output
from vdu.objective.plasticity import Ascent, Guided, elbo_weight
from vdu.objective.stability import OutputStability, WeightStability
from vdu.posterior import Posterior, isotropic, welford
from vdu.preparation.discriminator import Discriminator
from vdu.preparation.responsibility import best_bin_share


def _normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_output_of_a_perfect_network_converts_to_eps_and_back(kind):
    b = load_backbone(make_pipeline(kind))
    x_0, eps, t = torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8), torch.tensor([0, 5, 20, 49])
    x_t, a = b.add_noise(x_0, eps, t), b.alpha_bar[t].view(-1, 1, 1, 1)
    wanted = {"epsilon": eps, "v_prediction": a.sqrt() * eps - (1 - a).sqrt() * x_0, "sample": x_0}[kind]
    torch.testing.assert_close(b.from_eps(eps, x_t, t), wanted, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(b.to_eps(wanted, x_t, t), eps, atol=1e-3, rtol=1e-3)


def test_retained_output_is_the_exact_score_of_a_gaussian_mixture_without_one_part():
    x, pi = torch.linspace(-3, 3, 41).double(), 0.3
    density = lambda m: torch.exp(-0.5 * (x - m) ** 2)  # noqa: E731
    p_f, p_r = density(2.0), density(-1.0)
    p = (1 - pi) * p_r + pi * p_f
    eps_f, eps_r = x - 2.0, x + 1.0
    eps = ((1 - pi) * p_r * eps_r + pi * p_f * eps_f) / p
    column = eps.view(-1, 1, 1, 1)
    found = retained_output(column, column, eps_f.view(-1, 1, 1, 1), pi * p_f / p, pi * p_f / p).flatten()
    torch.testing.assert_close(found, eps_r)


def test_with_a_prompt_the_retained_output_is_the_exact_score_of_what_should_remain():
    """A prompt that makes the undesired nine times out of ten, of a model that makes it three times out of ten."""
    x, pi, asked = torch.linspace(-3, 3, 41).double(), 0.3, 0.9
    p_f, p_r = torch.exp(-0.5 * (x - 2.0) ** 2), torch.exp(-0.5 * (x + 1.0) ** 2)
    eps_f, eps_r = x - 2.0, x + 1.0

    def mixture(share: float) -> tuple[torch.Tensor, torch.Tensor]:
        density = (1 - share) * p_r + share * p_f
        return ((1 - share) * p_r * eps_r + share * p_f * eps_f) / density, share * p_f / density

    (prompted, rho), (unprompted, unprompted_rho) = mixture(asked), mixture(pi)
    columns = [eps.view(-1, 1, 1, 1) for eps in (prompted, unprompted, eps_f)]
    torch.testing.assert_close(retained_output(*columns, rho, unprompted_rho).flatten(), eps_r)


def test_welford_agrees_with_numpy_where_the_spread_is_tiny():
    states = [torch.full((3,), 0.05) + 1e-5 * torch.randn(3) for _ in range(12)]
    mean, variance = welford(iter(states))
    stack = np.stack([s.double().numpy() for s in states])
    np.testing.assert_allclose(mean, stack.mean(0), rtol=1e-12)
    np.testing.assert_allclose(variance, stack.var(0, ddof=1), rtol=1e-6)


def _one_weight(value: float, variance: float) -> tuple[torch.nn.Module, WeightStability]:
    network = torch.nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(value)
    prior = Posterior({"weight": torch.zeros(1, 1)}, {"weight": torch.full((1, 1), variance)}, "test", 1, "", 0.0, 0.0)
    return network, WeightStability(network, prior)


def test_proximal_step_minimises_its_quadratic():
    network, stability = _one_weight(0.7, 0.04)
    stability.proximal_step(learning_rate=0.1, gamma=0.5)
    grid = torch.linspace(-1, 1, 200_001).double()
    strength = 0.1 * 0.2 / 0.04
    best = grid[(0.5 * (grid - 0.7) ** 2 + 0.5 * strength * grid**2).argmin()]
    assert network.weight.item() == pytest.approx(best.item(), abs=1e-4)


def test_explicit_gradient_is_that_of_the_kl():
    network, stability = _one_weight(0.7, 0.04)
    network.weight.grad = torch.zeros(1, 1)
    assert stability.value() == pytest.approx(0.49 / 0.08, rel=1e-5)
    stability.add_gradient(0.5)
    assert network.weight.grad.item() == pytest.approx(0.5 * 0.7 / 0.04, rel=1e-5)


def test_value_is_the_kl_divergence_of_two_gaussians_with_the_posteriors_spread():
    _, stability = _one_weight(0.7, 0.04)
    q, p = torch.distributions.Normal(0.7, 0.2), torch.distributions.Normal(0.0, 0.2)
    assert stability.value() == pytest.approx(torch.distributions.kl_divergence(q, p).item(), rel=1e-5)


class _GaussianScore(torch.nn.Module):
    """The exact ε of data N(mean, 1): x_t ~ N(√ᾱ mean, 1), so ε(x_t, t) = √(1 − ᾱ) (x_t − √ᾱ mean)."""

    def __init__(self, mean, alpha_bar):
        super().__init__()
        self.mean, self.alpha_bar = torch.nn.Parameter(torch.tensor(mean)), alpha_bar

    def forward(self, x_t, t):
        a = self.alpha_bar[t].view(-1, 1, 1, 1)
        return SimpleNamespace(sample=(1 - a).sqrt() * (x_t - a.sqrt() * self.mean))


def test_guided_fixed_point_on_gaussians_is_the_mirrored_gaussian(backbone):
    """Away from N(1, 1) by η = 2, N(0, 1) becomes N(−2, 1): the loss there is zero and every other mean is worse."""
    backbone.network = _GaussianScore(0.0, backbone.alpha_bar)
    guided = Guided(backbone, torch.zeros(5, 1, 8, 8), _GaussianScore(1.0, backbone.alpha_bar), eta=2.0)

    def loss(mean):
        return guided(_GaussianScore(mean, backbone.alpha_bar), 16, torch.Generator().manual_seed(0)).item()

    assert loss(-2.0) == pytest.approx(0, abs=1e-10)
    assert min(loss(-1.9), loss(-2.1)) > 1e-4


def test_frechet_distance_of_known_gaussians():
    x = torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0)).double()
    assert frechet_distance(x, 2 * x.flip(0) + 1) == pytest.approx(2 * 1 + 2 * (2 - 1) ** 2, abs=0.05)


def test_kernel_distance_equals_a_double_loop():
    a, b = torch.randn(5, 3).double(), torch.randn(4, 3).double()
    k = lambda x, y: float((x @ y / 3 + 1) ** 3)  # noqa: E731
    within_a = np.mean([k(a[i], a[j]) for i in range(5) for j in range(5) if i != j])
    within_b = np.mean([k(b[i], b[j]) for i in range(4) for j in range(4) if i != j])
    across = np.mean([k(x, y) for x in a for y in b])
    assert kernel_distance(a, b) == pytest.approx(within_a + within_b - 2 * across)


def test_pul_counts_and_brackets():
    before, after = torch.arange(1000) < 100, torch.arange(1000) < 20
    found = pul(before, after)
    assert found.value == pytest.approx(80)
    assert found.low is not None
    assert found.high is not None
    assert 65 < found.low < 80 < found.high < 95
    assert pul(torch.zeros(9, dtype=torch.bool), torch.ones(9, dtype=torch.bool)).value is None


def test_wilson_interval_of_nothing_is_not_zero_wide():
    found = share_interval(torch.zeros(100, dtype=torch.bool))
    assert found.value == 0
    assert found.high == pytest.approx(3.7, abs=0.1)


@pytest.mark.parametrize("count", [30, 100, 500, 2000])
def test_wilson_interval_of_none_and_of_all_ends_exactly_there(count):
    assert share_interval(torch.zeros(count, dtype=torch.bool)).low == 0
    assert share_interval(torch.ones(count, dtype=torch.bool)).high == 100


def test_best_bin_share_finds_a_separable_share():
    assert best_bin_share(torch.full((200,), 0.12), 2000) == pytest.approx(0.12)


def test_elbo_weight_is_the_formula_up_to_scale(backbone):
    scheduler = backbone.pipeline.scheduler
    beta, alpha = scheduler.betas, scheduler.alphas
    naive = beta**2 / (2 * beta * alpha * (1 - backbone.alpha_bar))
    torch.testing.assert_close(elbo_weight(backbone.alpha_bar), naive / naive.mean(), rtol=1e-3, atol=1e-5)


class _Saying(torch.nn.Module):
    """A network that predicts what ``backbone``'s is to predict, of what ``score`` says as ε."""

    def __init__(self, score, backbone):
        super().__init__()
        self.score, self.backbone = score, backbone

    def forward(self, x_t, t):
        return SimpleNamespace(sample=self.backbone.from_eps(self.score(x_t, t).sample, x_t, t))


KINDS = ("epsilon", "v_prediction", "sample")


def test_the_elbo_is_the_same_whatever_the_network_predicts(forget):
    losses = []
    for kind in KINDS:
        b = load_backbone(make_pipeline(kind))
        network = _Saying(_GaussianScore(0.3, b.alpha_bar), b)
        losses.append(Ascent(b, forget, "elbo")(network, 64, torch.Generator().manual_seed(0)).item())
    noised, total = draw(b, forget, 64, torch.Generator().manual_seed(0)), 0.0
    for i in range(64):
        error = (network.score(noised.x_t[i : i + 1], noised.t[i : i + 1]).sample - noised.eps[i : i + 1]).detach()
        total -= float(elbo_weight(b.alpha_bar)[noised.t[i]] * error.pow(2).mean()) / 64
    assert losses == pytest.approx([total] * 3, rel=1e-3)


def test_the_bayes_target_is_the_same_score_whatever_the_network_predicts():
    t, x_t, features = torch.arange(15, 50), _normal(35, 1, 8, 8), _normal(35, 3, seed=1)
    torch.manual_seed(0)
    head, targets = Discriminator(3).eval(), []
    for kind in KINDS:
        b = load_backbone(make_pipeline(kind))
        original, undesired = (_Saying(_GaussianScore(mean, b.alpha_bar), b) for mean in (0.0, 1.0))
        said = original(x_t, t).sample.half()
        bank = NoisedBank(35, 1, x_t, t, t / 50, said, said, features, features)
        term = BayesTarget(b, bank, head, None).guide(undesired)
        targets.append(b.to_eps(term.target.float(), x_t, t))
        assert (targets[-1] - b.to_eps(said.float(), x_t, t)).abs().max() > 0.1
    for target in targets[1:]:
        torch.testing.assert_close(target, targets[0], atol=1e-2, rtol=1e-2)


def test_output_stability_is_the_distance_to_the_originals_output(backbone, forget):
    network, total = load_backbone(make_pipeline(seed=1)).network, 0.0
    noised = draw(backbone, forget, 5, torch.Generator().manual_seed(0))
    for x_t, t in zip(noised.x_t.split(1), noised.t, strict=True):
        with torch.no_grad():
            total += float((network(x_t, t).sample - backbone.network(x_t, t).sample).pow(2).mean()) / 5
    stability = OutputStability(backbone, forget)
    assert stability(network, 5, torch.Generator().manual_seed(0)).item() == pytest.approx(total, rel=1e-4)
    assert total > 0
    assert stability(backbone.trainable_copy(), 5, torch.Generator().manual_seed(0)).item() == pytest.approx(
        0, abs=1e-9
    )


def test_capped_ascent_has_no_gradient_beyond_the_cap(backbone, forget):
    network = backbone.trainable_copy()
    Ascent(backbone, forget, cap=1e-9)(network, 4, torch.Generator().manual_seed(0)).backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in network.parameters())
    Ascent(backbone, forget)(network, 4, torch.Generator().manual_seed(0)).backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_a_sample_depends_on_its_seed_and_number_only(backbone):
    whole = sample(backbone, backbone.network, 5, 3, steps=3, batch_size=5)
    parts = sample(backbone, backbone.network, 5, 3, steps=3, batch_size=2)
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(whole, sample(backbone, backbone.network, 5, 4, steps=3))


def test_isotropic_posterior_has_one_spread(backbone):
    spreads = torch.cat([v.flatten() for v in isotropic(backbone, 0.1).variance.values()])
    torch.testing.assert_close(spreads, torch.full_like(spreads, 0.01))
