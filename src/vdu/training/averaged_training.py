"""Training with an average of the weights, in steps that can be stopped and gone on with.

    θ ← AdamW(θ, clipped ∇L_s(θ), rate_s),   θ̄ ← d_s θ̄ + (1 − d_s) θ

What step s draws depends on s alone, so a run that goes on equals one that was never stopped.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from vdu.errors import VduError
from vdu.output import replacing
from vdu.weights.checkpoint import load_state, save_state
from vdu.weights.ema import ema_update
from vdu.weights.gradients import descend

__all__ = ["TrainingRun", "train_with_average"]

LOG_EVERY_STEPS = 50
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class TrainingRun:
    """How long, and the files: ``state`` (safetensors) and ``log`` (a JSON line every 50 steps and at each state).

    ``identity``: hash of what the outcome depends on; a state that says another is refused, unless it is one of
    ``shorter``, runs of which this one is the continuation.
    """

    steps: int
    state_every_steps: int
    ema_decay: float
    max_gradient_norm: float
    state: Path
    log: Path
    identity: str
    shorter: Collection[str] = ()


class _Log:
    """A line for the steps since the line before: their mean ``loss``, and ``seconds`` of all that led to them.

    What stands after ``first`` steps, those of the state, is taken out: these steps are made again.
    """

    def __init__(self, path: Path, first: int) -> None:
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        try:
            kept = list(takewhile(lambda line: line.endswith("\n") and json.loads(line)["step"] <= first, lines))
        except (ValueError, KeyError, TypeError) as error:
            raise VduError(f"{path} is no log of a run: remove it or choose another folder") from error
        with replacing(path) as beside:
            beside.write_text("".join(kept))
        self._path, self._losses = path, list[float]()
        self._started = time.monotonic() - (json.loads(kept[-1])["seconds"] if kept else 0.0)

    def add(self, loss: float) -> None:
        self._losses.append(loss)

    def write(self, step: int) -> None:
        seconds = round(time.monotonic() - self._started, 1)
        line = {"step": step, "loss": sum(self._losses) / len(self._losses), "seconds": seconds}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._losses.clear()


def train_with_average(
    model: M,
    run: TrainingRun,
    loss_at: Callable[[int], Tensor],
    learning_rate_at: Callable[[int], float],
    after_step: Callable[[int, M], None] | None = None,
) -> M:
    """Train ``model`` in place on ``loss_at(step)``; returns the average, in evaluation mode.

    ``after_step(done, average)`` is called after each of the steps that are made now.
    Raises `VduError` where the state belongs to another run, and for a loss or gradient that is not finite.
    """
    average = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    modules = {"model": model, "ema": average}
    first = load_state(run.state, modules, optimizer, {run.identity, *run.shorter}) if run.state.exists() else 0
    log = _Log(run.log, first)
    for step in range(first, run.steps):
        optimizer.param_groups[0]["lr"] = learning_rate_at(step)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(step)  # of what the network itself draws: dropout
            loss = loss_at(step)
        norm, value = descend(optimizer, loss, run.max_gradient_norm), loss.item()
        if not (math.isfinite(value) and norm.isfinite()):
            kept = f"the state of an earlier step is kept in {run.state}" if run.state.exists() else "nothing is kept"
            raise VduError(f"loss or gradient not finite at step {step + 1}, {kept}: give a smaller learning_rate")
        log.add(value)
        ema_update(average, model, run.ema_decay, step)
        done = step + 1
        state_is_due = done % run.state_every_steps == 0
        # At a state, too: what is summed for the next line need not be in it.
        if state_is_due or done % LOG_EVERY_STEPS == 0:
            log.write(done)
        if after_step is not None:
            after_step(done, average)
        if state_is_due:
            save_state(run.state, done, modules, optimizer, run.identity)
    return average
