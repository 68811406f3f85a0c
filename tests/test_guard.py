"""The guard and the loop: what is handed out is the best sound step, never just the last."""

import pytest
import torch

from vdu.guard import Guard
from vdu.loop import run_loop
from vdu.noising import Clean
from vdu.objective import MethodSettings, Objective
from vdu.preparation import Preparation
from vdu.unlearning import unlearn


class _Drift:
    """Pushes every prediction up without end: samples drift off, as ascent makes them."""

    def __init__(self, backbone, blow_up_at=None):
        self.backbone, self.calls, self.blow_up_at = backbone, 0, blow_up_at

    def __call__(self, network, batch_size, g):
        self.calls += 1
        x, t = torch.randn(batch_size, *self.backbone.shape, generator=g), torch.zeros(batch_size, dtype=torch.long)
        loss = -self.backbone.output(network, x, t).mean()
        return loss * float("nan") if self.calls == self.blow_up_at else loss


def _guard(backbone, forget, judge):
    return Guard(Preparation(backbone, Clean(forget), seed=0, own_count=8), judge, count=16, sampler_steps=3)


def _run(backbone, guard, term, **settings):
    values = MethodSettings(
        **({"steps": 6, "guard_every_steps": 2, "learning_rate": 1e-2, "stop_share": None} | settings)
    )
    return run_loop(backbone.trainable_copy(), Objective(0.0, term), values, guard)


def _same(network, backbone):
    return all(torch.equal(a, b) for a, b in zip(network.parameters(), backbone.network.parameters(), strict=True))


def test_when_quality_falls_the_original_comes_back(backbone, forget):
    looks = iter(range(100))

    def judge(images):
        first = next(looks) < 1  # the guard's look at the original
        return torch.ones(len(images), dtype=torch.bool), torch.full((len(images),), not first)

    outcome = _run(backbone, _guard(backbone, forget, judge), _Drift(backbone))
    assert "rolled back to step 0" in outcome.stop_reason
    assert outcome.steps == 2
    assert _same(outcome.network, backbone)


def test_the_loop_stops_when_the_content_is_gone(backbone, forget):
    looks = iter(range(100))

    def judge(images):
        gone = next(looks) >= 2
        return torch.full((len(images),), not gone), torch.zeros(len(images), dtype=torch.bool)

    outcome = _run(backbone, _guard(backbone, forget, judge), _Drift(backbone), learning_rate=1e-5, stop_share=0.0)
    assert outcome.best_step == outcome.steps == 4
    assert not _same(outcome.network, backbone)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_at_which_step(backbone, forget):
    def judge(images):
        nothing = torch.zeros(len(images), dtype=torch.bool)
        return nothing, nothing

    outcome = _run(backbone, _guard(backbone, forget, judge), _Drift(backbone, blow_up_at=3), learning_rate=1e-5)
    assert "not finite at step 3; rolled back to step 2" in outcome.stop_reason
    assert all(torch.isfinite(p).all() for p in outcome.network.parameters())


@pytest.mark.parametrize("seed", [0, 1])
def test_the_guards_figures_of_the_original_are_no_change(backbone, forget, seed):
    def judge(images):
        return images.mean(dim=(1, 2, 3)) > 0, torch.zeros(len(images), dtype=torch.bool)

    guard = Guard(
        Preparation(backbone, Clean(forget), seed=0, own_count=8), judge, count=16, sampler_steps=3, seed=seed
    )
    for check in (guard.start(), guard.check(backbone.network, 2)):
        assert check.change == 0
        assert check.diversity == pytest.approx(1)
        assert check.forget_share == guard.forget_share
        assert not check.broken


def test_without_a_guard_the_last_step_is_handed_out(backbone, forget):
    settings = {"steps": 3, "guard_every_steps": 0, "batch_size": 2}
    result = unlearn(backbone.pipeline, forget, "ga", settings=settings)
    assert result.record["guard"] == []
    assert result.record["best_step"] == result.record["steps"] == 3
    assert result.record["result_sha256"] != result.record["model_sha256"]
