"""The training loop: devices, schedule, clipping, averaging, guard, rollback, resume. It knows no mathematics.

    θ ← θ_best + ½ (θ − θ_best)      where a look finds θ broken, until one finds it sound, at most HALVINGS times

So a run that goes too far hands out a part of the way, not nothing.

Random numbers depend on (seed, step) only, and everything else that a step reads is in the state file, so a resumed run
takes the same steps as an uninterrupted one.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vdu.errors import VduError
from vdu.guard import Check, Guard, handed_out
from vdu.objective.contract import Direction, MethodSettings
from vdu.output import refuse_existing, replacing, require_space
from vdu.records import read_record
from vdu.seeding import generator
from vdu.weights.checkpoint import check_state, load_state, save_state
from vdu.weights.ema import ema_update
from vdu.weights.kept_parts import PREPARATION_FOLDER, check_parts
from vdu.weights.optimizers import OPTIMIZERS
from vdu.weights.schedules import cosine_to_zero

__all__ = ["LoopResult", "StepRecord", "check_resumable", "run_digest", "run_loop", "state_bytes"]

STATE_STEPS = 25
HALVINGS = 3
STATE_FILE, RECORDS_FILE = "state.safetensors", "records.json"


@dataclass(frozen=True)
class StepRecord:
    """What one optimiser step did; ``stability`` is the weight regulariser's value, where there is one."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    stability: float | None


@dataclass
class LoopResult:
    """The network of the best step, and how the loop got there."""

    network: nn.Module
    best_step: int
    stop_reason: str
    history: list[StepRecord] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    resumed_at_step: int = 0

    @property
    def steps(self) -> int:
        """Optimiser steps taken."""
        return self.history[-1].step if self.history else 0


def _copy(network: nn.Module) -> nn.Module:
    """A copy for looking at; frozen parameters are shared."""
    return copy.deepcopy(network, {id(p): p for p in network.parameters() if not p.requires_grad}).eval()


@torch.no_grad()
def _halve_way(network: nn.Module, start: nn.Module) -> None:
    """Move ``network`` half of the way to ``start``; frozen parameters may be shared."""
    for p, s in zip(network.parameters(), start.parameters(), strict=True):
        if p is not s:
            p.lerp_(s, 0.5)


class _Run:
    """State of one run: the moving network, its average, the best so far."""

    def __init__(
        self,
        network: nn.Module,
        objective: Direction,
        settings: MethodSettings,
        guard: Guard | None,
        seed: int,
        precision: str,
    ) -> None:
        self.network, self.objective, self.settings = network, objective, settings
        self.guard, self.seed, self.precision = guard, seed, precision
        # A large network is copied only where it must be; a decay of 0 leaves nothing to average.
        self.average = _copy(network) if settings.ema_decay else network
        self.best = _copy(network) if guard else self.average
        self.trained = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = OPTIMIZERS[settings.optimizer](self.trained, lr=settings.learning_rate)
        self.history: list[StepRecord] = []
        self.checks: list[Check] = []

    def learning_rate(self, step: int) -> float:
        decay = cosine_to_zero(step, self.settings.steps) if self.settings.schedule == "cosine" else 1.0
        return self.settings.learning_rate * decay

    def begin(self) -> None:
        """From the original, which the first look is at, to where the method starts."""
        self.objective.begin(self.network)
        if self.average is not self.network:
            self.average.load_state_dict(self.network.state_dict())

    def take_step(self, step: int) -> StepRecord:
        """One optimiser step, numbered from 0; none where loss or gradient is not finite."""
        rate = self.learning_rate(step)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        g = generator(self.seed, "loop", step)
        loss = self.objective.gradient(self.network, self.settings.batch_size, g, self.precision)
        norm = nn.utils.clip_grad_norm_(self.trained, self.settings.max_gradient_norm)
        if math.isfinite(loss.item()) and math.isfinite(norm.item()):
            self.optimizer.step()
            self.objective.after_step(rate)
            if self.average is not self.network:
                ema_update(self.average, self.network, self.settings.ema_decay, step)
        weights = self.objective.weights
        return StepRecord(step + 1, loss.item(), rate, norm.item(), weights.value() if weights else None)

    def look(self, step: int, way: float = 1.0) -> Check:
        """Check the average; keep it when it is the best yet (`vdu.guard`)."""
        assert self.guard is not None
        check = self.guard.check(self.average.eval(), step) if step else self.guard.start()
        check = replace(check, way=way)
        self.network.train()
        self.checks.append(check)
        if handed_out(self.checks) is check:
            self.best.load_state_dict(self.average.state_dict())
        return check

    def go_back(self, step: int) -> None:
        """From a broken average towards the best weights before, until a look finds it sound. The run ends there."""
        for halvings in range(1, HALVINGS + 1):
            _halve_way(self.average, self.best)
            if not self.look(step, 0.5**halvings).broken:
                return

    def best_step(self) -> int:
        if self.guard is None:
            return self.history[-1].step if self.history else 0
        best = handed_out(self.checks)
        return best.step if best else 0

    def modules(self) -> dict[str, nn.Module]:
        named = {"network": self.network, "average": self.average, "best": self.best}
        first = {id(module): name for name, module in reversed(named.items())}
        return {name: module for name, module in named.items() if first[id(module)] == name}

    def save(self, folder: Path, step: int, identity: str) -> None:
        with replacing(folder / RECORDS_FILE) as beside:
            records = {"history": [asdict(r) for r in self.history], "checks": [asdict(c) for c in self.checks]}
            beside.write_text(json.dumps(records, allow_nan=False))
        save_state(folder / STATE_FILE, step, self.modules(), self.optimizer, identity)

    def load(self, folder: Path, identity: str) -> int:
        path = folder / STATE_FILE
        if not path.is_file():
            return 0
        done = load_state(path, self.modules(), self.optimizer, {identity})
        records = read_record(folder / RECORDS_FILE)
        self.history = [StepRecord(**r) for r in records["history"] if r["step"] <= done]
        self.checks = [Check(**c) for c in records["checks"] if c["step"] <= done]
        return done

    def verdict(self) -> str | None:
        """Why to stop after the looks so far, or None to go on."""
        broken, best = next((c for c in self.checks if c.broken), None), handed_out(self.checks)
        if broken and best and best.way < 1:
            return f"quality fell at step {broken.step}; went back to {best.way:.3g} of the way there"
        if broken:
            return f"quality fell at step {broken.step}; rolled back to step {self.best_step()}"
        last, goal = self.checks[-1], self.settings.stop_share
        # Where none of the original's samples showed it either, that none does now says nothing.
        if goal is not None and self.checks[0].forget_share > goal >= last.forget_share:
            return f"the guard's forget share is down to {last.forget_share:.3f} at step {last.step}"
        return None


def run_digest(
    settings: MethodSettings,
    seed: int,
    precision: str,
    identity: dict[str, Any] | None,
    without: frozenset[str] = frozenset(),
) -> str:
    """What tells a run from others: a state is gone on from only where it is the same. ``without`` those settings."""
    told = [settings.model_dump(exclude=set(without)), seed, precision, identity]
    return hashlib.sha256(json.dumps(told, default=str).encode()).hexdigest()


def state_bytes(network: nn.Module, settings: MethodSettings) -> int:
    """What a state takes on the disk at most: moving, averaged and best weights, and the optimiser's two moments."""
    trained = sum(p.numel() * p.element_size() for p in network.parameters() if p.requires_grad)
    networks = 1 + bool(settings.ema_decay) + bool(settings.guard_every_steps)
    return (networks + 2) * trained


def check_resumable(state_folder: Path, digest: str, parts_digest: str, needed_bytes: int = 0) -> None:
    """Raise `VduError` where a run of that ``digest`` can neither begin nor go on in ``state_folder``.

    ``parts_digest``: of what is made before the first step. ``needed_bytes``: of a state, which has to fit beside the
    one that it replaces. What is made before the first step comes on top: how much that is, the method alone knows.
    """
    if state_folder.exists() and not state_folder.is_dir():
        raise VduError(f"{state_folder} is a file: give --state a folder")
    own = (STATE_FILE, RECORDS_FILE, PREPARATION_FOLDER)
    if state_folder.exists() and any(p.name not in own and not p.name.startswith(".") for p in state_folder.iterdir()):
        raise VduError(f"{state_folder} holds other files than a run's state: give --state a new or empty folder")
    refuse_existing(state_folder / STATE_FILE, overwrite=True)
    check_parts(state_folder, parts_digest)
    prepared = (state_folder / PREPARATION_FOLDER).exists()
    again = "that file, to begin again from what was made before its first step," if prepared else state_folder
    check_state(state_folder / STATE_FILE, {digest}, remove=again)
    begun = (state_folder / STATE_FILE).exists()
    require_space(state_folder / STATE_FILE, needed_bytes if begun else 2 * needed_bytes)
    if begun:
        read_record(state_folder / RECORDS_FILE, "remove the whole folder, or choose another")


def run_loop(
    network: nn.Module,
    objective: Direction,
    settings: MethodSettings,
    guard: Guard | None,
    *,
    seed: int = 0,
    precision: str = "fp32",
    identity: dict[str, Any] | None = None,
    state_folder: Path | None = None,
    on_step: Callable[[StepRecord, Check | None], None] | None = None,
) -> LoopResult:
    """Train ``network`` in place and return the best step's weights; without a ``guard``, the last finite step's.

    Stops at ``settings.steps``, at the guard's target, when quality falls, or on a non-finite loss. With a
    ``state_folder`` the state is written at every check and every `STATE_STEPS` steps, and an earlier run with equal
    ``identity`` is continued.
    """
    run = _Run(network, objective, settings, guard, seed, precision)
    digest = run_digest(settings, seed, precision, identity)
    first = run.load(state_folder, digest) if state_folder else 0
    step = first
    if guard and not run.checks:
        run.look(0)
    if not step:
        run.begin()
    reason = run.verdict() if guard else None
    every = settings.guard_every_steps or settings.steps
    while reason is None and step < settings.steps:
        record = run.take_step(step)
        step += 1
        if not math.isfinite(record.loss) or not math.isfinite(record.gradient_norm):
            reason = f"loss or gradient not finite at step {step}; rolled back to step {run.best_step()}"
            break
        run.history.append(record)
        due = step == settings.steps or step % every == 0
        check = run.look(step) if due and guard else None
        if on_step:
            on_step(record, check)
        if check:
            if check.broken:
                run.go_back(step)
            reason = run.verdict()
        if state_folder and (due or step % STATE_STEPS == 0):
            run.save(state_folder, step, digest)
    return LoopResult(run.best.eval(), run.best_step(), reason or "all steps taken", run.history, run.checks, first)
