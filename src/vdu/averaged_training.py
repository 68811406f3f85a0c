"""Training with an average of the weights, in steps that can be stopped and gone on with.

    θ ← AdamW(θ, clipped ∇L_s(θ), rate_s),   θ̄ ← d_s θ̄ + (1 − d_s) θ

What step s draws depends on s alone, so a run that goes on equals one that was never stopped.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from vdu.checkpoint import load_state, save_state
from vdu.ema import ema_update

__all__ = ["TrainingRun", "train_with_average"]

LOG_EVERY_STEPS = 50
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class TrainingRun:
    """How long, and the files: ``state`` (safetensors) and ``log`` (one JSON line every 50 steps).

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


def train_with_average(
    model: M,
    run: TrainingRun,
    loss_at: Callable[[int], Tensor],
    learning_rate_at: Callable[[int], float],
    after_step: Callable[[int, M], None] | None = None,
) -> M:
    """Train ``model`` in place on ``loss_at(step)``; returns the average, in evaluation mode.

    ``after_step(done, average)`` is called after each of the steps that are made now.
    Raises `VduError` where the state belongs to another run.
    """
    average = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    modules = {"model": model, "ema": average}
    first = load_state(run.state, modules, optimizer, {run.identity, *run.shorter}) if run.state.exists() else 0
    run.log.parent.mkdir(parents=True, exist_ok=True)
    started, total = time.monotonic(), 0.0
    with run.log.open("a") as log:
        for step in range(first, run.steps):
            optimizer.param_groups[0]["lr"] = learning_rate_at(step)
            loss = loss_at(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), run.max_gradient_norm)
            optimizer.step()
            ema_update(average, model, run.ema_decay, step)
            total, done = total + loss.item(), step + 1
            if done % LOG_EVERY_STEPS == 0:
                seconds = round(time.monotonic() - started, 1)
                log.write(json.dumps({"step": done, "loss": total / LOG_EVERY_STEPS, "seconds": seconds}) + "\n")
                log.flush()
                total = 0.0
            if after_step is not None:
                after_step(done, average)
            if done % run.state_every_steps == 0:
                save_state(run.state, done, modules, optimizer, run.identity)
    return average
