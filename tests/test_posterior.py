"""The posterior from checkpoints: what it is, what it refuses, and that its file says the same."""

from dataclasses import astuple

import pytest
import torch
from conftest import make_pipeline

from vdu import VduError, unlearn
from vdu.backbone import load_backbone
from vdu.diffusion.noising import noised
from vdu.objective.stability import WeightStability
from vdu.posterior import from_checkpoints, from_fisher, isotropic, load_posterior, summarise
from vdu.seeding import generator
from vdu.weights.checkpoint import write_tensors


@pytest.fixture
def checkpoints(backbone, tmp_path):
    paths = []
    for k in range(4):
        g = torch.Generator().manual_seed(k)
        state = {n: p + 1e-3 * torch.randn(p.shape, generator=g) for n, p in backbone.network.state_dict().items()}
        paths.append(tmp_path / f"step-{k}.safetensors")
        write_tensors(paths[-1], state)
    return paths


def test_spread_is_that_of_the_checkpoints_and_the_file_keeps_it(backbone, checkpoints, tmp_path):
    posterior = from_checkpoints(backbone, checkpoints)
    assert summarise(posterior)["all"].median_sd == pytest.approx(1e-3, rel=0.2)
    posterior.save(tmp_path / "p.safetensors")
    again = load_posterior(tmp_path / "p.safetensors", backbone)
    assert again.source == "checkpoints"
    assert again.count == 4
    for name, variance in posterior.variance.items():
        assert torch.equal(again.variance[name], variance)


def test_the_anchor_is_the_sampled_network_or_the_mean_where_asked(backbone, checkpoints, tmp_path):
    at_weights = WeightStability(backbone.trainable_copy(), from_checkpoints(backbone, checkpoints))
    assert at_weights.value() == 0
    from_checkpoints(backbone, checkpoints, anchor="mean").save(tmp_path / "m.safetensors")
    at_mean = WeightStability(backbone.trainable_copy(), load_posterior(tmp_path / "m.safetensors", backbone))
    assert at_mean.value() > 0
    with pytest.raises(VduError, match="'mean'"):
        from_checkpoints(backbone, checkpoints, anchor="meen")


def test_half_precision_keeps_the_spread(backbone, checkpoints, tmp_path):
    posterior = from_checkpoints(backbone, checkpoints)
    posterior.save(tmp_path / "p.safetensors", torch.bfloat16)
    again = load_posterior(tmp_path / "p.safetensors", backbone)
    for name, variance in posterior.variance.items():
        torch.testing.assert_close(again.variance[name].float(), variance, rtol=5e-3, atol=0)


def test_checkpoints_of_another_model_are_refused_with_the_first_difference(backbone, checkpoints, tmp_path):
    first = next(iter(backbone.network.state_dict()))
    state = dict(backbone.network.state_dict())
    write_tensors(tmp_path / "short.safetensors", {n: p for n, p in state.items() if n != first})
    with pytest.raises(VduError, match=f"no parameter '{first}'"):
        from_checkpoints(backbone, [*checkpoints, tmp_path / "short.safetensors"])
    write_tensors(tmp_path / "other.safetensors", state | {first: torch.zeros(3)})
    with pytest.raises(VduError, match=rf"'{first}' has shape \(3,\)"):
        from_checkpoints(backbone, [*checkpoints, tmp_path / "other.safetensors"])
    with pytest.raises(VduError, match="at least 2"):
        from_checkpoints(backbone, checkpoints[:1])


def test_fisher_is_the_sum_of_squared_gradients(backbone):
    """σ*² = 1 / (Σ g² + 1/s²), one gradient an image, but for the smallest, which are raised to 1 % of the median."""
    images, network = torch.rand(3, 1, 8, 8), backbone.trainable_copy()
    posterior = from_fisher(backbone, images, seed=5, scale=0.1)
    squares = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    for i in range(3):
        sample = noised(backbone, images[i : i + 1], generator(5, "fisher", i))
        network.zero_grad()
        (0.5 * (network(sample.x_t, sample.t).sample - sample.eps).pow(2).sum()).backward()
        for name, p in network.named_parameters():
            squares[name] += p.grad**2
    naive = {name: 1 / (g + 1 / 0.1**2) for name, g in squares.items()}
    floor = 0.01 * float(torch.cat([v.flatten() for v in naive.values()]).median())
    assert posterior.count == 3
    assert min(float(v.min()) for v in naive.values()) < 0.5 * 0.1**2
    for name, variance in naive.items():
        torch.testing.assert_close(posterior.variance[name], variance.clamp(min=floor), rtol=1e-3, atol=0)


def test_a_posterior_without_spread_is_refused(backbone, tmp_path):
    for k in range(2):
        write_tensors(tmp_path / f"{k}.safetensors", backbone.network.state_dict())
    with pytest.raises(VduError, match="no spread"):
        from_checkpoints(load_backbone(make_pipeline()), [tmp_path / "0.safetensors", tmp_path / "1.safetensors"])


def test_a_posterior_of_another_model_is_refused_as_its_file_is(backbone, forget):
    other = isotropic(load_backbone(make_pipeline(seed=1)))
    with pytest.raises(VduError, match="belongs to another model"):
        unlearn(backbone.pipeline, forget, "vdu-paper", posterior=other)


def test_weights_at_the_floor_are_counted_as_such_in_half_precision(backbone, checkpoints, tmp_path):
    state = from_checkpoints(backbone, checkpoints)
    name = max(state.variance, key=lambda n: state.variance[n].numel())
    state.variance[name] = torch.full_like(state.variance[name], state.floor)
    state.save(tmp_path / "p.safetensors", torch.bfloat16)
    layer = ".".join(name.split(".")[:2])
    shares = [summarise(p)[layer].floor_share for p in (state, load_posterior(tmp_path / "p.safetensors"))]
    assert shares[0] == shares[1] > 0


def test_the_summary_is_that_of_all_values_and_of_a_larger_network_of_every_so_manieth(
    backbone, checkpoints, monkeypatch
):
    state = from_checkpoints(backbone, checkpoints)
    sd = torch.cat([v.flatten() for v in state.variance.values()]).double().sqrt()
    whole = summarise(state)["all"]
    naive = [len(sd), *map(float, (sd.median(), sd.min(), sd.max())), float((sd**2 <= state.floor).double().mean())]
    assert list(astuple(whole)) == pytest.approx(naive)
    monkeypatch.setattr("vdu.posterior.MEDIAN_OF", len(sd) // 7)
    assert summarise(state)["all"].median_sd == pytest.approx(whole.median_sd, rel=0.1)
