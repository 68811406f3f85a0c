"""Run what is missing of a suite, one JSON file a run, finished runs skipped, some side by side, here or on a cluster.

The unlearning seed is ``seed``, the evaluation seed ``1000 + seed``. Methods that need a retain set get the shipped
images of the other classes. A run that is refused leaves a file with its reason and is tried again the next time.
What the suite measures is the protocol's own matter: `ClassRuns` or `ConceptRuns`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from vdu.bench.processes import processes
from vdu.bench.suite import Run, Suite, result_path, zoo_model
from vdu.errors import VduError
from vdu.methods import find_method, make_settings, own_source_sha256
from vdu.model_zoo import ZooModel
from vdu.output import refuse_existing, replacing
from vdu.quiet import quiet
from vdu.records import read_record, write_record
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
        return {"status": "refused", "reason": str(error)} | run.heading, None
    evaluation, picture = runs.evaluate(done, run)
    record = _source(zoo, done.record, run.target)
    cost = {"seconds": record["seconds"], "threads": torch.get_num_threads()}
    cost |= {key: record[key] for key in ("steps", "passes", "stop_reason")}
    row = run.heading | runs.row(evaluation) | cost
    return {"status": "done", "row": row, "unlearning": record, "evaluation": evaluation}, picture


def _asked(suite: Suite, run: Run) -> dict[str, Any]:
    """What a run is made and measured with, as far as it is not the default."""
    source = own_source_sha256(find_method(run.arm.method))
    own = {"source of the method": source} if source else {}
    asked = suite.asked | {"concept": _used(suite.asked["concept"], run)}
    return {"arm": run.arm.model_dump(mode="json", exclude_defaults=True)} | asked | own


def _used(concept: dict[str, Any] | None, run: Run) -> dict[str, Any] | None:
    """Without the things that this run's prompts do not ask for."""
    return concept if concept is None or run.arm.things else {k: v for k, v in concept.items() if k != "things"}


def _settings(run: Run, takes_text: bool) -> dict[str, Any]:
    """All that its method takes, defaults too."""
    values = make_settings(find_method(run.arm.method), run.arm.settings)
    return (values.for_text() if takes_text else values).model_dump(mode="json")


def _is_made(suite: Suite, run: Run, path: Path) -> bool:
    """Whether its file is there.

    Raises `VduError` for one of a run that was asked otherwise, or with other defaults than those of today.
    """
    if not path.is_file():
        return False
    found = read_record(path)
    if found.get("status") == "refused":  # what lacked may be there now
        return False
    asked = _asked(suite, run)
    for name, value in (found.get("asked") or {}).items():  # an older file says less
        if (_used(value, run) if name == "concept" else value) != asked.get(name):
            what = "settings" if name == "arm" else name.replace("_", " ")
            raise VduError(f"{path} was made with other {what}: remove it, or give another --results")
    made = found.get("unlearning", {})
    taken = _settings(run, takes_text=bool(made.get("prompts")))  # a suite of classes may have such a model too
    for name, value in made.get("settings", {}).items():
        if value != taken.get(name):
            differs = f"{name} = {value}, today it would be {taken.get(name)}"
            raise VduError(f"{path} was made with {differs}: remove it, or give another --results")
    return True


class Worker:
    """Makes runs of one suite in a process of its own, with a fixed number of threads."""

    def __init__(self, suite: Suite, threads: int) -> None:
        torch.set_num_threads(threads)
        quiet()
        self.suite = suite
        self.runs: Runs = ClassRuns(suite) if suite.concept is None else ConceptRuns(suite, suite.concept)

    def make(self, run: Run) -> Made:
        """Carry out and measure one run."""
        result, picture = _result(self.suite, self.runs, run)
        said = f"{self.runs.said(result['row'])}, {result['row']['seconds']:.0f} s" if "row" in result else None
        return Made(run, result | {"asked": _asked(self.suite, run)}, picture, said or result["reason"])


_worker_of_process: list[Worker] = []


def _make(suite: Suite, threads: int, run: Run) -> Made:
    """What the worker of this process makes; it is prepared with its first run, whose error finds the way back."""
    if not _worker_of_process:
        _worker_of_process.append(Worker(suite, threads))
    return _worker_of_process[0].make(run)


def _in_processes(suite: Suite, runs: list[Run], jobs: int) -> Iterator[Made]:
    """What is made side by side on this machine, as it comes, each on its share of the cores.

    A run that breaks does not take the others with it: its error is raised when they are done. None waits in the pool,
    so whoever stops listening, by Ctrl-C or with a full disk, does not wait for what nobody will write.
    """
    failed: Exception | None = None
    broken: BrokenProcessPool | None = None
    threads, waiting = max(1, torch.get_num_threads() // jobs), iter(runs)
    with processes(jobs) as pool:
        going = {pool.submit(_make, suite, threads, run) for run in islice(waiting, jobs)}
        while going:
            finished, going = wait(going, return_when=FIRST_COMPLETED)
            for done in finished:
                try:
                    made = done.result()
                except BrokenProcessPool as error:
                    broken = error
                    continue
                except Exception as error:
                    failed = failed or error
                    continue
                yield made
            if broken is not None:
                said = "the system ended a process, probably for want of memory: take fewer --jobs"
                raise VduError(said) from broken
            going |= {pool.submit(_make, suite, threads, run) for run in islice(waiting, len(finished))}
    if failed is not None:
        raise failed


def write_result(made: Made, path: Path) -> None:
    """The record's JSON file at ``path``, the picture beside it."""
    if made.picture is not None:
        with replacing(path.with_suffix(".png")) as beside:
            made.picture.save(beside, format="PNG", optimize=True)
    write_record(path, made.result)


def run_suite(
    suite: Suite, results: Path, limit: int | None, jobs: int, say: Callable[[str], None], cluster: str | None = None
) -> None:
    """Make at most ``limit`` runs that have no result file yet, ``jobs`` at a time, and write their files.

    ``cluster``: address of a Ray cluster whose machines make them; without it, processes here. Raises `VduError` where
    a target has no forget images, and for files of runs that were asked otherwise.
    """
    require_inputs(suite)
    missing = [run for run in suite.runs() if not _is_made(suite, run, result_path(results, suite, run))]
    # Those that were refused before come last: a limit must not be spent on them for ever.
    missing = sorted(missing, key=lambda run: result_path(results, suite, run).is_file())[:limit]
    say(f"{suite.name}: {len(missing)} runs to make")
    if not missing:
        return
    refuse_existing(result_path(results, suite, missing[0]), overwrite=True)
    if cluster is None:
        made_runs = _in_processes(suite, missing, jobs)
    else:
        from vdu.bench.ray_cluster import on_cluster

        made_runs = on_cluster(Worker, suite, missing, jobs, cluster)
    number = 0
    try:
        for number, made in enumerate(made_runs, 1):
            write_result(made, result_path(results, suite, made.run))
            say(f"[{number}/{len(missing)}] {made.run.label} {made.run.target} seed {made.run.seed}: {made.said}")
    except KeyboardInterrupt:
        say(f"interrupted: {number} of {len(missing)} are made; the same command makes the others")
        raise
