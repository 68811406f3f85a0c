"""Run what is missing of a suite, one JSON file a run, finished runs skipped, some side by side, here or on a cluster.

The unlearning seed is ``seed``, the evaluation seed ``1000 + seed``. Methods that need a retain set get the shipped
images of the other classes. A run that is refused or fails leaves a file with its reason, and is tried again the next
time. What the suite measures is the protocol's own matter: `ClassRuns` or `ConceptRuns`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from vdu.bench.class_runs import ClassRuns
from vdu.bench.concept_runs import ConceptRuns
from vdu.bench.given import given_images, require_inputs
from vdu.bench.made_rows import FAILED, REFUSED, MadeRows, asked_of, finished
from vdu.bench.processes import processes
from vdu.bench.suite import Run, Suite, result_path, zoo_model
from vdu.errors import VduError, with_kind
from vdu.model_zoo import ZooModel
from vdu.output import refuse_existing, replacing
from vdu.quiet import quiet
from vdu.records import write_record
from vdu.result import Result

__all__ = ["Made", "Worker", "run_suite", "write_result"]


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


@dataclass(frozen=True)
class Made:
    """One run's record, the picture of its samples where there is one, and what came out in a few words."""

    run: Run
    result: dict[str, Any]
    picture: Image.Image | None
    said: str


def _source(zoo: ZooModel, record: dict[str, Any], target: str) -> dict[str, Any]:
    """The record without its steps, and with names in place of paths: ``own:`` where the images are the user's."""
    whose = "own" if zoo.has_own_images else "zoo"
    record = {key: value for key, value in record.items() if key != "history"} | {"model": zoo.name}
    for key, said in (("forget", target), ("retain", f"without {target}")):
        if record[key]:
            between = "/" if key == "forget" else " "
            record[key] = record[key] | {"source": f"{whose}:{zoo.name}/forget{between}{said}"}
    return record


def _result(suite: Suite, runs: Runs, run: Run) -> tuple[dict[str, Any], Image.Image | None]:
    zoo = zoo_model(suite)
    images, retain = given_images(suite, run)
    try:
        done = runs.unlearn(run, images, retain)
    except VduError as error:
        return {"status": REFUSED, "reason": str(error)} | run.heading, None
    evaluation, picture = runs.evaluate(done, run)
    record = _source(zoo, done.record, run.target)
    cost = {"seconds": record["seconds"], "threads": torch.get_num_threads()}
    cost |= {key: record[key] for key in ("steps", "passes", "stop_reason")}
    row = run.heading | runs.row(evaluation) | cost
    return {"status": "done", "row": row, "unlearning": record, "evaluation": evaluation}, picture


class Worker:
    """Makes runs of one suite in a process of its own, with a fixed number of threads."""

    def __init__(self, suite: Suite, threads: int) -> None:
        torch.set_num_threads(threads)
        quiet()
        self.suite = suite
        self.runs: Runs = ClassRuns(suite) if suite.concept is None else ConceptRuns(suite, suite.concept)

    def make(self, run: Run) -> Made:
        """Carry out and measure one run; what breaks it is the reason in its row, so that the others are made."""
        try:
            result, picture = _result(self.suite, self.runs, run)
        except Exception as error:  # a method, model or judge of the user's own fails in any way
            reason = str(error) if isinstance(error, VduError) else with_kind(error)
            result, picture = {"status": FAILED, "reason": reason} | run.heading, None
        return Made(run, result | {"asked": asked_of(self.suite, run)}, picture, self._said(result))

    def _said(self, result: dict[str, Any]) -> str:
        if "row" in result:
            return f"{self.runs.said(result['row'])}, {result['row']['seconds']:.0f} s"
        return f"{'failed: ' * (result['status'] == FAILED)}{result['reason']}"


_worker_of_process: list[Worker] = []


def _make(suite: Suite, threads: int, run: Run) -> Made:
    """What the worker of this process makes; it is prepared with its first run, whose error finds the way back."""
    if not _worker_of_process:
        _worker_of_process.append(Worker(suite, threads))
    return _worker_of_process[0].make(run)


def _in_processes(suite: Suite, runs: Iterable[Run], jobs: int) -> Iterator[Made]:
    """What is made side by side on this machine, as it comes, each on its share of the cores.

    None waits in the pool, so whoever stops listening, by Ctrl-C or with a full disk, does not wait for what nobody
    will write. Raises what the preparation that all runs share raises, and `VduError` for a process that was ended.
    """
    broken: Exception | None = None
    threads, waiting = max(1, torch.get_num_threads() // jobs), iter(runs)
    with processes(jobs) as pool:
        going = {pool.submit(_make, suite, threads, run) for run in islice(waiting, jobs)}
        while going:
            finished, going = wait(going, return_when=FIRST_COMPLETED)
            for done in finished:
                try:
                    made = done.result()
                except Exception as error:
                    broken = error
                    continue
                yield made
            if isinstance(broken, BrokenProcessPool):
                said = "the system ended a process, probably for want of memory: take fewer --jobs"
                raise VduError(said) from broken
            if broken is not None:
                raise broken
            going |= {pool.submit(_make, suite, threads, run) for run in islice(waiting, len(finished))}


def write_result(made: Made, path: Path) -> None:
    """The record's JSON file at ``path``, the picture beside it."""
    if made.picture is not None:
        with replacing(path.with_suffix(".png")) as beside:
            made.picture.save(beside, format="PNG", optimize=True)
    write_record(path, made.result)


def _left(missing: list[Run], suite: Suite, results: Path, say: Callable[[str], None]) -> Iterator[Run]:
    """Those that are still missing when their turn comes: another process may make runs of the same suite."""
    for run in missing:
        if finished(result_path(results, suite, run)) is not None:
            say(f"{run.name}: made meanwhile by another process")
        else:
            yield run


def run_suite(
    suite: Suite, results: Path, limit: int | None, jobs: int, say: Callable[[str], None], cluster: str | None = None
) -> None:
    """Make at most ``limit`` runs that have no result file yet, ``jobs`` at a time, and write their files.

    ``cluster``: address of a Ray cluster whose machines make them; without it, processes here. Raises `VduError` where
    a target has no forget images, for files of runs that were asked otherwise, and at the end where runs have failed.
    """
    require_inputs(suite)
    rows = MadeRows(suite, results)
    rows.refuse_others()
    missing = [run for run in suite.runs() if not rows.has(run)]
    # Those that were refused or failed before come last: a limit must not be spent on them for ever.
    missing = sorted(missing, key=lambda run: result_path(results, suite, run).is_file())[:limit]
    say(f"{suite.name}: {len(missing)} runs to make")
    if not missing:
        return
    refuse_existing(result_path(results, suite, missing[0]), overwrite=True)
    left = _left(missing, suite, results, say)
    if cluster is None:
        made_runs = _in_processes(suite, left, jobs)
    else:
        from vdu.bench.ray_cluster import on_cluster

        made_runs = on_cluster(Worker, suite, left, jobs, cluster)
    number, failed = 0, list[str]()
    try:
        for number, made in enumerate(made_runs, 1):
            write_result(made, result_path(results, suite, made.run))
            say(f"[{number}/{len(missing)}] {made.run.name}: {made.said}")
            failed += [made.run.name] * (made.result["status"] == FAILED)
    except KeyboardInterrupt:
        say(f"interrupted: {number} of {len(missing)} are made; the same command makes the others")
        raise
    if failed:
        advice = "their rows say why, the same command makes them again"
        raise VduError(f"{suite.name}: {len(failed)} of {number} runs failed ({failed[0]} …): {advice}")
