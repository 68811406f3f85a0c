"""What forgetting costs: the work of a method up to the first sound look that finds a PUL of at least 95 %.

A guard with a larger sample than a run's own, and the zoo's detector, looks on the way; what its looks take is not
counted. One that finds the samples broken ends the run (`vdu.guard`): noise is no forgetting. Every run is a process of
its own, whose peak memory is counted beyond what it held when model and images were loaded. Time is that of the
processor; passes are of one image, a backward pass as two, as everywhere. Ratios are to the suite's first method.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vdu.backbone import load_backbone
from vdu.bench.memory import peak_bytes
from vdu.bench.suite import Run, Suite, require_inputs, zoo_model
from vdu.detector import Detector, load_detector
from vdu.device import resolve_device
from vdu.errors import VduError, nearest
from vdu.guard import Check, Guard
from vdu.inputs import Given, read_inputs
from vdu.judge import Judge, detector_judge
from vdu.loop import LoopResult, run_loop
from vdu.methods import find_method, make_settings
from vdu.objective import MethodSettings
from vdu.output import write_record
from vdu.parameters import trained_copy
from vdu.precision import resolve_precision
from vdu.preparation import Preparation
from vdu.quiet import quiet
from vdu.unlearning import Request

__all__ = ["measure_cost", "run_forgetting_cost"]

WANTED_PUL_PERCENT = 95.0
LOOKS = 10
RATIOS = {"seconds_ratio": "seconds", "passes_ratio": "passes", "memory_ratio": "memory_bytes"}


class _UncountedGuard(Guard):
    """A guard that knows what its looks took, and takes no larger batch for them than a step."""

    def __init__(self, preparation: Preparation, judge: Judge, count: int, batch_size: int) -> None:
        started, passes = time.process_time(), preparation.backbone.passes
        super().__init__(preparation, judge, count=count)
        self.seconds, self.passes = time.process_time() - started, preparation.backbone.passes - passes
        self.batch_size = batch_size

    def check(self, network: nn.Module, step: int) -> Check:
        backbone = self.preparation.backbone
        started, passes, largest = time.process_time(), backbone.passes, backbone.largest_batch
        backbone.largest_batch = self.batch_size
        looked = super().check(network, step)
        backbone.largest_batch = largest
        self.seconds += time.process_time() - started
        self.passes += backbone.passes - passes
        return looked


def _request(suite: Suite, run: Run, detector: Detector) -> Request:
    """The run as `vdu.unlearn` would accept it, without a guard."""
    zoo, method, place = zoo_model(suite), find_method(run.arm.method), resolve_device(None)
    values = make_settings(method, run.arm.settings | {"guard_every_steps": 0})
    retain = zoo.retain(run.target) if "retain" in method.settings.needs else None
    images = sorted(zoo.forget(run.target).glob("*.png"))[: run.arm.forget_images]
    backbone = load_backbone(zoo.pipeline)
    given = Given(images, retain, None, zoo.shipped_posterior, detector, run.target)
    inputs, precision = read_inputs(backbone, given), resolve_precision("auto", place)
    return Request(method, values, backbone, inputs, run.arm.share, run.seed, precision, place, None)


def _watched(guard: Guard, values: MethodSettings) -> MethodSettings:
    """Settings with which the loop looks often and stops where enough is gone."""
    goal = guard.forget_share * (1 - WANTED_PUL_PERCENT / 100)
    return values.model_copy(update={"guard_every_steps": max(1, round(values.steps / LOOKS)), "stop_share": goal})


def _outcome(guard: Guard, result: LoopResult, goal: float) -> dict[str, Any]:
    """The first sound look that finds enough gone; without one the last look, and why the run ended there."""
    looks = [c for c in result.checks if c.step and not c.broken and c.way == 1]
    reached = next((c for c in looks if c.forget_share <= goal), None)
    last = reached or result.checks[-1]
    return {
        "step": reached.step if reached else None,
        "pul": round(100 * (1 - last.forget_share / guard.forget_share), 1),
        "ended": f"{WANTED_PUL_PERCENT:.0f} % forgotten" if reached else result.stop_reason,
    }


def measure_cost(suite: Suite, run: Run, samples: int) -> dict[str, Any]:
    """One run in this process, looked at by that many ``samples``; its row without ratios.

    ``step`` is None where 95 % is never reached, ``ended`` says why. Raises `VduError` where nothing can go.
    """
    detector = load_detector(zoo_model(suite).classifier)
    request = _request(suite, run, detector)
    backbone, values = request.backbone, request.values
    held, started = peak_bytes(), time.process_time()
    network = trained_copy(backbone, values.parameters, values.lora_rank, run.seed, values.gradient_checkpointing)
    preparation, objective, _ = request.prepare(network)
    judge = detector_judge(detector, detector.class_index(run.target), backbone.decode)
    guard = _UncountedGuard(preparation, judge, samples, values.batch_size)
    if not guard.forget_share:
        raise VduError(f"of {samples} samples of {suite.model} none is of class {run.target}: nothing can go")
    values = _watched(guard, values)
    result = run_loop(network, objective, values, guard, seed=run.seed, precision=request.precision)
    cost = {
        "seconds": round(time.process_time() - started - guard.seconds, 2),
        "passes": backbone.passes - guard.passes,
        "memory_bytes": peak_bytes() - held,
        "samples": samples,
        "threads": torch.get_num_threads(),
    }
    return run.heading | _outcome(guard, result, values.stop_share or 0.0) | cost


def _in_process(suite: Suite, run: Run, samples: int) -> dict[str, Any]:
    quiet()
    return measure_cost(suite, run, samples)


def _beside_first(row: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    """With ratios, where both reached the goal."""
    both = row["step"] is not None and first["step"] is not None
    return row | {name: round(row[of] / first[of], 3) if both and first[of] else None for name, of in RATIOS.items()}


def _runs(suite: Suite, targets: Sequence[str]) -> list[Run]:
    """Those of the first seed. Raises `VduError` for what cannot be measured."""
    if suite.concept is not None:
        raise VduError(f"suite {suite.name} is of a model with text, whose forgetting has no PUL")
    for target in targets:
        if target not in suite.targets:
            raise VduError(f"no target {target!r} in suite {suite.name}: {nearest(target, suite.targets)}")
    require_inputs(suite)
    return [run for run in suite.runs() if run.seed == suite.seeds[0] and (not targets or run.target in targets)]


def run_forgetting_cost(
    suite: Suite, results: Path, targets: Sequence[str], samples: int, say: Callable[[str], None]
) -> None:
    """Measure what is not measured yet, in turn, and write ``cost-<suite>/<method>-<target>.json``.

    ``targets``: some of the suite's, or none for all. Raises `VduError` for what cannot be measured.
    """
    first: dict[str, dict[str, Any]] = {}
    for run in _runs(suite, targets):
        path = results / f"cost-{suite.name}" / f"{run.label}-{run.target}.json"
        if path.is_file():
            row = json.loads(path.read_text())["row"]
        else:
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                row = pool.submit(_in_process, suite, run, samples).result()
            row = _beside_first(row, first.get(run.target, row))
            write_record(path, {"row": row})
            say(f"{run.label} {run.target}: {row['ended']} at step {row['step']}, {row['seconds']} s")
        first.setdefault(run.target, row)
