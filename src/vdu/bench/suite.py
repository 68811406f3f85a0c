"""Run what is missing of a suite: models × methods × targets × seeds, one JSON file a run, finished runs skipped.

The unlearning seed is ``seed``, the evaluation seed ``1000 + seed``. Methods that need a retain set get the shipped
images of the other classes. A run that is refused stays as a file with its reason. The original's samples are made once
for each evaluation seed (and process).
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from vdu.backbone import Backbone, load_backbone
from vdu.checkpoint import replacing
from vdu.detector import Detector, load_detector
from vdu.errors import VduError, nearest
from vdu.evaluation import Sampler, evaluate
from vdu.methods import find_method, make_settings
from vdu.model_zoo import ZooModel, find_zoo_model
from vdu.reference import Reference, load_reference
from vdu.unlearning import unlearn

__all__ = ["Run", "Suite", "read_suite", "result_path", "run_suite"]

SUITES = Path(__file__).parent / "suites"


class Arm(BaseModel):
    """A method with settings, under a label; ``forget_images`` takes the first few of the shipped ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    method: str
    settings: dict[str, Any] = {}
    share: float | None = None
    forget_images: int | None = Field(None, ge=1)


class Suite(BaseModel):
    """What to run. ``model`` is a zoo name."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    model: str
    targets: list[str]
    seeds: list[int]
    samples: int = Field(ge=100)
    sampler_steps: int = Field(ge=1)
    methods: dict[str, Arm]

    def runs(self) -> Iterator[Run]:
        """All runs, seed by seed, so that an unfinished suite has every target once before any twice."""
        for seed in self.seeds:
            for label, arm in self.methods.items():
                for target in self.targets:
                    yield Run(label, arm, target, seed)


@dataclass(frozen=True)
class Run:
    """One cell of a suite."""

    label: str
    arm: Arm
    target: str
    seed: int


def read_suite(name: str) -> Suite:
    """A shipped suite by name or a TOML file by path. Raises `VduError` for unknown names, settings and classes."""
    path = Path(name) if name.endswith(".toml") else SUITES / f"{name}.toml"
    if not path.is_file():
        known = [p.stem for p in SUITES.glob("*.toml")] + ["step-cost", "memory-sd15"]
        raise VduError(f"no suite {name!r}: {nearest(name, known)}; or give a .toml file")
    try:
        suite = Suite(name=path.stem, **tomllib.loads(path.read_text()))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise VduError(f"suite {path.name} is not valid: {' '.join(str(error).split())}") from error
    for arm in suite.methods.values():
        make_settings(find_method(arm.method), arm.settings)
    zoo = _zoo_model(suite)
    for target in suite.targets:
        if not zoo.forget(target).is_dir():
            raise VduError(f"suite {path.name}: {zoo.name} has no forget images of class {target!r}")
    return suite


def _zoo_model(suite: Suite) -> ZooModel:
    zoo = find_zoo_model(suite.model)
    if zoo is None:
        raise VduError(f"suite {suite.name} needs the zoo model {suite.model!r}, which is not shipped")
    return zoo


def result_path(results: Path, suite: Suite, run: Run) -> Path:
    """Where the result of one run lies."""
    name = f"{run.label}-{run.target}-{run.seed}.json"
    return results / suite.name / name.replace(",", "").replace(" ", "-")


class _Bench:
    """What all runs of one suite share."""

    def __init__(self, suite: Suite) -> None:
        self.suite, self.zoo = suite, _zoo_model(suite)
        self.original: Backbone = load_backbone(self.zoo.pipeline)
        self.detector: Detector = load_detector(self.zoo.classifier)
        self.reference: Reference = load_reference(self.zoo.reference, self.detector, self.original.shape)
        self._before: dict[int, Tensor] = {}

    def evaluate(self, pipeline: Any, run: Run) -> dict[str, Any]:
        sampler = Sampler(steps=self.suite.sampler_steps, seed=1000 + run.seed, count=self.suite.samples)
        if run.seed not in self._before:
            self._before[run.seed] = sampler.draw(self.original)
        return evaluate(
            self.original,
            load_backbone(pipeline),
            self.detector,
            run.target,
            reference=self.reference,
            sampler=sampler,
            before=self._before[run.seed],
        ).record


def _row(run: Run, unlearning: dict[str, Any], evaluation: dict[str, Any]) -> dict[str, Any]:
    pul = evaluation["pul"]
    return {
        "method": run.label,
        "target": run.target,
        "seed": run.seed,
        "pul": pul["value"],
        "pul_low": pul["low"],
        "pul_high": pul["high"],
        "share_before": evaluation["share_before"]["value"],
        "share_after": evaluation["share_after"]["value"],
        "share_none_before": evaluation["share_none_before"]["value"],
        "share_none": evaluation["share_none"]["value"],
        "u_fid": evaluation["u_fid"],
        "u_fid_original": evaluation["u_fid_original"],
        "kid": evaluation["kid"],
        "kid_original": evaluation["kid_original"],
        "total_variation": evaluation["total_variation"],
        "changed": evaluation["changed"],
        "samples": evaluation["samples"],
        "seconds": unlearning["seconds"],
        "threads": torch.get_num_threads(),
        "steps": unlearning["steps"],
        "stop_reason": unlearning["stop_reason"],
    }


def _result(bench: _Bench, run: Run) -> dict[str, Any]:
    zoo = bench.zoo
    retain = zoo.retain(run.target) if "retain" in find_method(run.arm.method).settings.needs else None
    images = sorted(zoo.forget(run.target).glob("*.png"))[: run.arm.forget_images]
    try:
        done = unlearn(
            zoo.name,
            images,
            run.arm.method,
            retain=retain,
            settings=run.arm.settings,
            share=run.arm.share,
            seed=run.seed,
        )
    except VduError as error:
        return {"status": "refused", "reason": str(error), "method": run.label, "target": run.target, "seed": run.seed}
    evaluation = bench.evaluate(done.pipeline, run)
    record = {key: value for key, value in done.record.items() if key != "history"}
    record["forget"] = record["forget"] | {"source": f"zoo:{zoo.name}/forget/{run.target}"}
    if retain:
        record["retain"] = record["retain"] | {"source": f"zoo:{zoo.name}/forget without {run.target}"}
    return {"status": "done", "row": _row(run, record, evaluation), "unlearning": record, "evaluation": evaluation}


_bench_of_process: list[_Bench] = []


def _start(suite: Suite, threads: int) -> None:
    """Prepare a worker process."""
    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    _bench_of_process.append(_Bench(suite))


def _make(suite: Suite, results: Path, run: Run) -> str:
    """Make one run, write its file, and say in a line what came out."""
    result = _result(_bench_of_process[0], run)
    with replacing(result_path(results, suite, run)) as beside:
        beside.write_text(json.dumps(result, indent=1) + "\n")
    said = _said(result["row"]) if "row" in result else result["reason"]
    return f"{run.label} {run.target} seed {run.seed}: {said}"


def run_suite(suite: Suite, results: Path, limit: int | None, jobs: int, say: Callable[[str], None]) -> None:
    """Make at most ``limit`` runs that have no result file yet, ``jobs`` at a time, each on its share of the cores."""
    missing = [run for run in suite.runs() if not result_path(results, suite, run).is_file()][:limit]
    say(f"{suite.name}: {len(missing)} runs to make")
    if not missing:
        return
    threads = max(1, torch.get_num_threads() // jobs)
    with ProcessPoolExecutor(jobs, get_context("spawn"), _start, (suite, threads)) as pool:
        waiting = [pool.submit(_make, suite, results, run) for run in missing]
        for number, done in enumerate(as_completed(waiting), 1):
            say(f"[{number}/{len(missing)}] {done.result()}")


def _said(row: dict[str, Any]) -> str:
    shown = {"PUL": row["pul"], "u-FID": row["u_fid"], "original": row["u_fid_original"], "none": row["share_none"]}
    figures = ", ".join(f"{name} {value:.2f}" for name, value in shown.items() if value is not None)
    return f"{figures}, {row['seconds']:.0f} s"
