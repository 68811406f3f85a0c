"""Run what is missing of a suite, one JSON file a run, finished runs skipped, some side by side.

The unlearning seed is ``seed``, the evaluation seed ``1000 + seed``. Methods that need a retain set get the shipped
images of the other classes. A run that is refused stays as a file with its reason. What the suite measures is the
protocol's own matter: `ClassRuns` or `ConceptRuns`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from vdu.bench.class_runs import ClassRuns
from vdu.bench.concept_runs import ConceptRuns
from vdu.bench.suite import Run, Suite, result_path, zoo_model
from vdu.checkpoint import replacing
from vdu.errors import VduError
from vdu.methods import find_method
from vdu.model_zoo import ZooModel
from vdu.quiet import quiet
from vdu.result import Result

__all__ = ["run_suite"]


class Runs(Protocol):
    """What a protocol does with one run; made once for each process, for what all runs share."""

    def unlearn(self, run: Run, images: list[Path], retain: list[Path] | None) -> Result:
        """Carry the run out. Raises `VduError` where the method cannot be given what it needs."""

    def evaluate(self, done: Result, run: Run) -> tuple[dict[str, Any], Image.Image | None]:
        """The record of its figures, and a picture of samples before and after."""

    def row(self, evaluation: dict[str, Any]) -> dict[str, Any]:
        """The figures that tables are made of."""

    def said(self, row: dict[str, Any]) -> str:
        """What came out, in a few words."""


def _heading(run: Run) -> dict[str, Any]:
    return {"method": run.label, "target": run.target, "seed": run.seed}


def _source(zoo: ZooModel, record: dict[str, Any], target: str) -> dict[str, Any]:
    """The record without its steps, and with names in place of paths: ``own:`` where the images are the user's."""
    whose = "zoo" if zoo.images is None else "own"
    record = {key: value for key, value in record.items() if key != "history"}
    for key, said in (("forget", target), ("retain", f"without {target}")):
        if record[key]:
            between = "/" if key == "forget" else " "
            record[key] = record[key] | {"source": f"{whose}:{zoo.name}/forget{between}{said}"}
    return record


def _result(suite: Suite, runs: Runs, run: Run) -> tuple[dict[str, Any], Image.Image | None]:
    zoo = zoo_model(suite)
    retain = zoo.retain(run.target) if "retain" in find_method(run.arm.method).settings.needs else None
    images = sorted(zoo.forget(run.target).glob("*.png"))[: run.arm.forget_images]
    try:
        done = runs.unlearn(run, images, retain)
    except VduError as error:
        return {"status": "refused", "reason": str(error)} | _heading(run), None
    evaluation, picture = runs.evaluate(done, run)
    record = _source(zoo, done.record, run.target)
    cost = {"seconds": record["seconds"], "threads": torch.get_num_threads()}
    cost |= {key: record[key] for key in ("steps", "stop_reason")}
    row = _heading(run) | runs.row(evaluation) | cost
    return {"status": "done", "row": row, "unlearning": record, "evaluation": evaluation}, picture


_runs_of_process: list[Runs] = []


def _start(suite: Suite, threads: int) -> None:
    """Prepare a worker process."""
    torch.set_num_threads(threads)
    quiet()
    _runs_of_process[:] = [ClassRuns(suite) if suite.concept is None else ConceptRuns(suite, suite.concept)]


def _make(suite: Suite, results: Path, run: Run) -> str:
    """Make one run, write its files, and say in a line what came out."""
    runs, path = _runs_of_process[0], result_path(results, suite, run)
    result, picture = _result(suite, runs, run)
    if picture is not None:
        with replacing(path.with_suffix(".png")) as beside:
            picture.save(beside, format="PNG", optimize=True)
    with replacing(path) as beside:
        beside.write_text(json.dumps(result, indent=1) + "\n")
    said = f"{runs.said(result['row'])}, {result['row']['seconds']:.0f} s" if "row" in result else result["reason"]
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
