"""The guard and the loop: what is handed out is the best sound step, never just the last."""

import json
from dataclasses import asdict

import pytest
import torch

from vdu import VduError, loop
from vdu.diffusion.noising import Clean
from vdu.guard import Check, Guard, handed_out
from vdu.loop import run_loop
from vdu.methods import find_method, make_settings
from vdu.objective.contract import MethodSettings, Objective
from vdu.preparation.preparation import Preparation
from vdu.unlearning import unlearn
from vdu.weights.checkpoint import write_tensors


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


@pytest.mark.parametrize("halvings", [1, 3])
def test_a_run_that_goes_too_far_hands_out_a_part_of_the_way(backbone, forget, halvings):
    looks = iter(range(100))

    def judge(images):
        look = next(looks)  # 0: the original; broken from then on, until so many halvings
        return torch.full((len(images),), look == 0), torch.full((len(images),), 0 < look < 1 + halvings)

    outcome = _run(backbone, _guard(backbone, forget, judge), _Drift(backbone))
    whole = _run(backbone, None, _Drift(backbone), steps=2, guard_every_steps=0)
    assert outcome.best_step == outcome.steps == whole.steps == 2
    assert f"went back to {0.5**halvings:.3g} of the way" in outcome.stop_reason
    assert [(c.way, c.broken) for c in outcome.checks[1:]] == [(0.5**k, k < halvings) for k in range(halvings + 1)]
    networks = (outcome.network, whole.network, backbone.network)
    for part, end, start in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(part, start + 0.5**halvings * (end - start))


@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        # (step, forget share, damage, part of the way); no damage: broken
        ([(0, 0.1, 0), (75, 0.0, 0), (150, 0.0, 0)], 2),
        ([(0, 0.1, 0), (75, 0.008, 0), (150, 0.016, 0)], 2),  # a sample more of 128: chance
        ([(0, 0.1, 0), (75, 0.02, 0), (150, 0.06, 0)], 1),
        ([(0, 0.1, 0), (75, 0.02, 0), (150, 0.02, 0.02), (225, 0.06, 0)], 2),
        ([(0, 0.1, 0), (75, 0.11, 0), (150, 0.08, 0.051)], 0),  # nothing is worth its damage
        ([(0, 0.1, 0), (75, 0.11, 0), (150, 0.08, 0.05)], 2),
        ([(0, 0.04, 0), (75, 0.0, 0.08), (150, 0.0, 0.09)], 2),  # of little that it makes, all
        ([(0, 0.0, 0), (75, 0.0, 0.02), (150, 0.0, 0.03)], 2),  # the judge sees none of it
        ([(0, 0.1, 0), (75, 0.1, 0), (150, 0.12, 0)], 1),
        ([(0, 0.1, 0), (75, 0.05, 0), (150, 1.0, None)], 1),
        ([(0, 0.1, 0), (75, 0.05, 0), (150, 1.0, None), (150, 0.06, 0, 0.5)], 1),  # a part of the way must be better
        ([(0, 0.1, 0), (75, 0.05, 0), (150, 1.0, None), (150, 0.04, 0, 0.5)], 3),
        ([(0, 1.0, None)], None),
    ],
)
def test_the_last_look_that_is_best_up_to_chance_is_handed_out(looks, expected):
    checks = [
        Check(step, share, 0.0, 1.0, 0.0, None if damage is None else share + damage, damage is None, *way)
        for step, share, damage, *way in looks
    ]
    chosen = handed_out(checks)
    assert chosen is (None if expected is None else checks[expected])
    held = None  # as the loop holds weights: look by look
    for k, check in enumerate(checks, 1):
        held = check if handed_out(checks[:k]) is check else held
    assert held is chosen


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


def test_a_look_at_broken_samples_has_no_score_and_is_worse_than_any(backbone, forget):
    def judge(images):
        assert torch.isfinite(images).all()
        return torch.zeros(len(images), dtype=torch.bool), torch.zeros(len(images), dtype=torch.bool)

    guard, network = _guard(backbone, forget, judge), backbone.trainable_copy()
    network.conv_out.bias.data.fill_(float("nan"))
    check = guard.check(network, 2)
    assert check.broken
    assert check.score is check.change is None
    assert check.rank > guard.start().rank
    assert Check(**json.loads(json.dumps(asdict(check), allow_nan=False))) == check


def test_a_run_that_breaks_at_once_hands_the_original_back_and_its_record_is_json(backbone, forget, tmp_path):
    """A learning rate that blows the network up: loss and gradient of the step are finite, the samples are not."""

    def judge(images):
        return torch.ones(len(images), dtype=torch.bool), torch.zeros(len(images), dtype=torch.bool)

    settings = MethodSettings(steps=4, guard_every_steps=1, learning_rate=1e30, stop_share=None)
    guard, network = _guard(backbone, forget, judge), backbone.trainable_copy()
    outcome = run_loop(network, Objective(0.0, _Drift(backbone)), settings, guard, state_folder=tmp_path)
    assert "rolled back to step 0" in outcome.stop_reason
    assert [c.score is None for c in outcome.checks] == [False, True, True, True, True]
    assert _same(outcome.network, backbone)
    json.dumps([asdict(c) for c in outcome.checks], allow_nan=False)
    json.loads((tmp_path / "records.json").read_text(), parse_constant=pytest.fail)


def test_a_run_is_not_over_because_its_guard_never_saw_what_must_go(backbone, forget):
    def blind(images):
        return torch.zeros(len(images)), torch.zeros(len(images))

    settings = MethodSettings(steps=4, guard_every_steps=2, learning_rate=1e-12, stop_share=0.0)
    network = backbone.trainable_copy()
    outcome = run_loop(network, Objective(0.0, _Drift(backbone)), settings, _guard(backbone, forget, blind))
    assert (outcome.steps, outcome.stop_reason) == (4, "all steps taken")


def test_a_state_is_written_between_looks_that_are_far_apart(backbone, forget, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "STATE_STEPS", 2)

    def run(steps):
        settings = MethodSettings(steps=5, guard_every_steps=5, batch_size=2, learning_rate=1e-3, stop_share=None)
        guard, taken = (
            _guard(backbone, forget, lambda x: (torch.ones(len(x)), torch.zeros(len(x)))),
            loop._Run.take_step,
        )

        def stop_later(self, step):
            if step == steps:
                raise KeyboardInterrupt
            return taken(self, step)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop._Run, "take_step", stop_later)
            objective = Objective(0.0, _Drift(backbone))
            folder = tmp_path / ("whole" if steps == 5 else "parts")
            return run_loop(backbone.trainable_copy(), objective, settings, guard, state_folder=folder)

    whole = run(5)
    with pytest.raises(KeyboardInterrupt):
        run(3)
    resumed = run(-1)
    assert resumed.resumed_at_step == 2
    assert [check.step for check in resumed.checks] == [check.step for check in whole.checks] == [0, 5]
    for a, b in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_state_without_its_record_is_refused_before_any_work(tmp_path):
    write_tensors(tmp_path / "state.safetensors", {}, {"settings_hash": "x"})
    for written in (None, "{", "[]"):
        if written is not None:
            (tmp_path / "records.json").write_text(written)
        with pytest.raises(VduError, match=r"records\.json .*remove the whole folder"):
            loop.check_resumable(tmp_path, "x", "x")


class _Elsewhere:
    """Where training begins: not at the original."""

    def set_weights(self, network):
        with torch.no_grad():
            for p in network.parameters():
                p.add_(0.5)


@pytest.mark.parametrize("guarded", [True, False])
def test_a_run_that_begins_elsewhere_still_hands_the_original_back(backbone, forget, guarded):
    looks = iter(range(100))

    def sound_at_first(images):
        return torch.ones(len(images), dtype=torch.bool), torch.full((len(images),), next(looks) >= 1)

    guard = _guard(backbone, forget, sound_at_first) if guarded else None
    still = {"steps": 1, "learning_rate": 1e-12, "guard_every_steps": 1, "ema_decay": 0.9}
    values = MethodSettings(**still, stop_share=None)
    objective = Objective(0.0, _Drift(backbone), start=_Elsewhere())
    outcome = run_loop(backbone.trainable_copy(), objective, values, guard)
    assert _same(outcome.network, backbone) == guarded
    if not guarded:
        for p, original in zip(outcome.network.parameters(), backbone.network.parameters(), strict=True):
            torch.testing.assert_close(p, original + 0.5)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_what_a_run_begins_with_is_done_once_when_it_is_resumed(backbone, tmp_path, optimizer):
    settings = {
        "optimizer": optimizer,
        "guard_every_steps": 0,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "ema_decay": 0.9,
    }

    def run(steps, folder):
        objective = Objective(0.0, _Drift(backbone), start=_Elsewhere())
        values = MethodSettings(steps=steps, **settings)
        return run_loop(backbone.trainable_copy(), objective, values, None, state_folder=folder)

    whole, class_ = run(28, None), loop._Run
    taken = class_.take_step
    with pytest.MonkeyPatch.context() as patch:

        def stop_later(self, step):
            if step == 27:
                raise KeyboardInterrupt
            return taken(self, step)

        patch.setattr(class_, "take_step", stop_later)
        with pytest.raises(KeyboardInterrupt):
            run(28, tmp_path)
    resumed = run(28, tmp_path)
    assert (whole.resumed_at_step, resumed.resumed_at_step) == (0, 25)
    assert [r.step for r in resumed.history] == list(range(1, 29))
    for a, b in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_cosine_schedule_is_half_a_cosine_from_the_rate_to_nothing(backbone):
    settings = {"steps": 4, "guard_every_steps": 0, "learning_rate": 1e-3}
    rates = {
        name: [r.learning_rate for r in _run(backbone, None, _Drift(backbone), schedule=name, **settings).history]
        for name in ("constant", "cosine")
    }
    assert rates["constant"] == [1e-3] * 4
    assert rates["cosine"] == pytest.approx([1e-3, 8.5355e-4, 5e-4, 1.46447e-4], rel=1e-4)


def test_a_setting_that_is_no_number_is_refused():
    with pytest.raises(VduError, match="cap=inf"):
        make_settings(find_method("capped-ascent"), {"cap": float("inf")})


def test_without_a_guard_the_last_step_is_handed_out(backbone, forget):
    settings = {"steps": 3, "guard_every_steps": 0, "batch_size": 2}
    result = unlearn(backbone.pipeline, forget, "ga", settings=settings)
    assert result.record["guard"] == []
    assert result.record["best_step"] == result.record["steps"] == 3
    assert result.record["result_sha256"] != result.record["model_sha256"]
