"""What forgetting costs: the work of a method up to the first sound look that finds a PUL of at least 95 %.

A guard with a larger sample than a run's own, and the zoo's detector, looks on the way; what its looks take is not
counted. One that finds the samples broken ends the run (`vdu.guard`): noise is no forgetting. Every run is a process of
its own, whose peak memory is counted beyond what it held when model and images were loaded (with the best weights so
far, which a run with a guard keeps). Time is that of the processor, where all is computed; passes are of one image, a
backward pass as two. A run that is refused, or that the system ends, leaves a row that says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vdu.backbone import Backbone, load_backbone
from vdu.bench.given import given_images, require_inputs
from vdu.bench.peak_memory import forget_peak, peak_bytes
from vdu.bench.processes import processes
from vdu.bench.suite import Run, Suite, result_name, zoo_model
from vdu.detector.contract import Detector, load_detector
from vdu.errors import VduError, with_kind
from vdu.guard import Check, Guard
from vdu.inputs import Given, read_inputs
from vdu.loop import LoopResult, run_loop
from vdu.methods import find_method, make_settings, own_source_sha256
from vdu.objective.contract import MethodSettings
from vdu.output import refuse_existing
from vdu.precision import resolve_precision
from vdu.preparation.judge import Judge, detector_judge
from vdu.preparation.preparation import Preparation
from vdu.provenance import made_by
from vdu.quiet import quiet
from vdu.records import read_record, write_record
from vdu.unlearning import Request, with_shipped
from vdu.weights.parameters import trained_copy

__all__ = ["measure_cost", "run_forgetting_cost"]

WANTED_PUL_PERCENT = 95.0
REFUSED, FAILED = "refused: ", "failed: "
LOOKS = 10
MB = 10**6


class _UncountedGuard(Guard):
    """A guard that knows what its looks took, and what was the most memory held outside of them."""

    def __init__(self, preparation: Preparation, judge: Judge, count: int) -> None:
        self.seconds, self.passes, self.outside_bytes = 0.0, 0, 0
        with self._uncounted(preparation.backbone):
            super().__init__(preparation, judge, count=count)

    @contextmanager
    def _uncounted(self, backbone: Backbone) -> Iterator[None]:
        self.outside_bytes = max(self.outside_bytes, peak_bytes())
        started, passes = time.process_time(), backbone.passes
        yield
        self.seconds += time.process_time() - started
        self.passes += backbone.passes - passes
        forget_peak()

    def check(self, network: nn.Module, step: int) -> Check:
        with self._uncounted(self.preparation.backbone):
            return super().check(network, step)


def _settings(run: Run) -> MethodSettings:
    """All that its method takes, defaults too, without a guard."""
    return make_settings(find_method(run.arm.method), run.arm.settings | {"guard_every_steps": 0})


def _request(suite: Suite, run: Run, detector: Detector) -> Request:
    """The run as `vdu.unlearn` would accept it, without a guard."""
    zoo, method, place = zoo_model(suite), find_method(run.arm.method), torch.device("cpu")
    values = _settings(run)
    images, retain = given_images(suite, run)
    given, _ = with_shipped(zoo, method, Given(images, retain, detector=detector, target=run.target), None)
    backbone = load_backbone(zoo.pipeline)
    inputs, precision = read_inputs(backbone, given), resolve_precision("auto", place)
    return Request(method, values, backbone, inputs, run.arm.share, run.seed, precision, place, None)


def _watched(guard: Guard, values: MethodSettings) -> MethodSettings:
    """Settings with which the loop looks often and stops where enough is gone."""
    goal = guard.forget_share * (1 - WANTED_PUL_PERCENT / 100)
    return values.model_copy(update={"guard_every_steps": max(1, round(values.steps / LOOKS)), "stop_share": goal})


def _outcome(guard: Guard, result: LoopResult, goal: float) -> dict[str, Any]:
    """The first sound look that finds enough gone; without one the last sound look, and why the run ended."""
    looks = [c for c in result.checks if c.step and not c.broken and c.way == 1]
    reached = next((c for c in looks if c.forget_share <= goal), None)
    last = reached or (looks[-1] if looks else None)
    return {
        "step": reached.step if reached else None,
        "pul": round(100 * (1 - last.forget_share / guard.forget_share), 1) if last else None,
        "ended": f"{WANTED_PUL_PERCENT:.0f} % forgotten" if reached else result.stop_reason,
    }


def measure_cost(suite: Suite, run: Run, samples: int) -> dict[str, Any]:
    """One run in this process, looked at by that many ``samples``: what its row says beside method, target and seed.

    ``step`` is None where 95 % is never reached, ``ended`` says why; ``pul`` is that of the last sound look, None
    without one; ``memory_mb`` is None where the system does not tell. Raises `VduError` where nothing can go.
    """
    detector = load_detector(zoo_model(suite).judge)
    request = _request(suite, run, detector)
    backbone, values = request.backbone, request.values
    known, started = forget_peak(), time.process_time()
    held = peak_bytes()
    network = trained_copy(backbone, values.parameters, values.lora_rank, run.seed, values.gradient_checkpointing)
    preparation, objective, _ = request.prepare(network)
    judge = detector_judge(detector, detector.class_index(run.target), backbone.decode)
    guard = _UncountedGuard(preparation, judge, samples)
    if not guard.forget_share:
        raise VduError(f"of {samples} samples of {suite.model} none is of class {run.target}: nothing can go")
    values = _watched(guard, values)
    result = run_loop(network, objective, values, guard, seed=run.seed, precision=request.precision)
    most = max(guard.outside_bytes, peak_bytes())
    return _outcome(guard, result, values.stop_share or 0.0) | {
        "seconds": round(time.process_time() - started - guard.seconds, 2),
        "passes": backbone.passes - guard.passes,
        "memory_mb": round((most - held) / MB, 1) if known else None,
        "threads": torch.get_num_threads(),
    }


def _in_process(suite: Suite, run: Run, samples: int) -> dict[str, Any]:
    quiet()
    return measure_cost(suite, run, samples)


def _measured(suite: Suite, run: Run, samples: int) -> dict[str, Any]:
    """In a process of its own."""
    nothing = dict.fromkeys(("step", "pul", "seconds", "passes", "memory_mb", "threads"))
    with processes(1) as pool:
        try:
            return pool.submit(_in_process, suite, run, samples).result()
        except VduError as error:
            return nothing | {"ended": f"{REFUSED}{error}"}
        except BrokenProcessPool:
            return nothing | {"ended": "the system ended the process"}
        except Exception as error:  # an own method fails in any way
            return nothing | {"ended": f"{FAILED}{with_kind(error)}"}


def _runs(suite: Suite) -> list[Run]:
    """Those of the first seed. Raises `VduError` for what cannot be measured."""
    if suite.concept is not None:
        raise VduError(f"suite {suite.name} is of a model with text, whose forgetting has no PUL")
    if any(arm.checkpoints for arm in suite.methods.values()):
        raise VduError(f"suite {suite.name} makes posteriors of checkpoints, whose cost is not measured: name another")
    require_inputs(suite)
    return list(suite.part(seeds=suite.seeds[:1]).runs())


def _asked(suite: Suite, run: Run, samples: int) -> dict[str, Any]:
    """What a row is measured of and with."""
    of_suite = suite.model_dump(mode="json", include={"model", "detector"})
    source = own_source_sha256(find_method(run.arm.method))
    of_run = {"arm": run.arm.model_dump(), "settings": _settings(run).model_dump(mode="json"), "samples": samples}
    return of_suite | of_run | ({"source of the method": source} if source else {})


def _is_made(path: Path, asked: dict[str, Any]) -> bool:
    """Whether it is measured, and was neither refused nor failed: what lacked may be there now.

    Raises `VduError` for a row that was measured in another way, or with other defaults, than the others will be.
    """
    if not path.is_file():
        return False
    found = asked | read_record(path)  # an older file says less
    if {key: found[key] for key in asked} != asked:
        differs = "another model or method, or with other settings or samples"
        raise VduError(f"{path} was measured of {differs}: remove it, or give another --results")
    return not str(found.get("row", {}).get("ended")).startswith((REFUSED, FAILED))


def run_forgetting_cost(suite: Suite, results: Path, samples: int, say: Callable[[str], None]) -> None:
    """Measure what is not measured yet, in turn, and write ``cost-<suite>/<method>-<target>.json``.

    Raises `VduError` for what cannot be measured.
    """
    missing = []
    for run in _runs(suite):
        path = results / f"cost-{suite.name}" / result_name(run.label, run.target)
        asked = _asked(suite, run, samples)
        if not _is_made(path, asked):
            missing.append((run, path, asked))
    say(f"cost-{suite.name}: {len(missing)} runs to make")
    if missing:
        refuse_existing(missing[0][1], overwrite=True)
    for run, path, asked in missing:
        row = run.heading | _measured(suite, run, samples)
        write_record(path, {"row": row} | asked | made_by())
        say(f"{run.label} {run.target}: {row['ended']}, step {row['step']}, {row['seconds']} s")
