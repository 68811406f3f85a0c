"""The oracle's rows of a suite: models that were trained without a class, measured as if they had forgotten it.

``FOLDER/<class>`` is a run folder of ``vdu train RECIPE --without <class>`` with the recipe of the suite's model. Its
row has the method ``retrain``: what remains of the class, and how far the samples are from the retained images, with as
much training as the original had. Nothing that unlearns can be expected to come nearer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vdu.backbone import Backbone, load_backbone
from vdu.bench.class_runs import ClassRuns, first_pairs
from vdu.bench.made_rows import MadeRows, finished
from vdu.bench.rows import RETRAIN
from vdu.bench.runner import Made, write_result
from vdu.bench.suite import Arm, Run, Suite, result_path, zoo_model
from vdu.errors import VduError
from vdu.output import refuse_existing
from vdu.training.recipe import Recipe

__all__ = ["measure_oracles"]


def _trained_as(suite: Suite, folder: Path, target: str) -> dict[str, Any]:
    """The oracle's provenance. Raises `VduError` where it is not the suite's model but for the class left out."""
    try:
        provenance: dict[str, Any] = json.loads((folder / "provenance.json").read_text())
        oracle = Recipe.model_validate(provenance["recipe"])
    except (OSError, ValueError, KeyError) as error:
        advice = f"finish `vdu train --without {target}` into it first"
        raise VduError(f"{folder} has no provenance.json of a recipe: {advice}") from error
    made = zoo_model(suite).provenance
    original = Recipe.model_validate(made["recipe"])
    if oracle.without != [target]:
        raise VduError(f"{folder} was trained without {oracle.without or 'nothing'}, not without [{target!r}]")
    if oracle.comparable() != original.comparable():
        raise VduError(f"{folder} was trained by another recipe than {suite.model}: train it with that one")
    if provenance.get("data_sha256") != made["data_sha256"]:
        raise VduError(f"{folder} was trained on other files than {suite.model} (packed ones differ too): use those")
    return provenance


def _oracles(suite: Suite, folder: Path) -> dict[str, tuple[Backbone, dict[str, Any]]]:
    """All that are there, with their provenance; every one is looked at before any is sampled."""
    there = [target for target in suite.targets if (folder / target).is_dir()]
    if not there:
        raise VduError(f"no folder {folder}/<class> is of a class of {suite.name}: make one with `vdu train --without`")
    provenance = {target: _trained_as(suite, folder / target, target) for target in there}
    return {target: (load_backbone(folder / target / "pipeline"), provenance[target]) for target in there}


def _runs(suite: Suite, targets: list[str]) -> Iterator[Run]:
    for seed in suite.seeds:
        for target in targets:
            yield Run(RETRAIN, Arm(method=RETRAIN, share=None, forget_images=None, checkpoints=None), target, seed)


def measure_oracles(suite: Suite, folder: Path, results: Path, say: Callable[[str], None]) -> None:
    """Write the rows that are missing.

    Raises `VduError` for a suite of concepts, for a model that is no oracle, and beside rows that were made otherwise.
    """
    if suite.concept is not None:
        raise VduError(f"suite {suite.name} is of a model with text, which has no oracle yet")
    oracles = _oracles(suite, folder)
    MadeRows(suite, results).refuse_others()
    missing = [run for run in _runs(suite, list(oracles)) if finished(result_path(results, suite, run)) is None]
    if not missing:
        return
    refuse_existing(result_path(results, suite, missing[0]), overwrite=True)
    runs = ClassRuns(suite)
    for run in missing:
        backbone, provenance = oracles[run.target]
        evaluation = runs.compare(backbone, run)
        steps = sum(provenance["recipe"]["training"]["cycle_steps"])
        row = run.heading | runs.row(evaluation.record)
        row |= {"seconds": None, "threads": None, "steps": steps, "stop_reason": "trained without the class"}
        result = {"status": "done", "row": row, "training": provenance, "evaluation": evaluation.record}
        result["asked"] = suite.asked
        write_result(Made(run, result, first_pairs(evaluation), runs.said(row)), result_path(results, suite, run))
        say(f"{run.name}: {runs.said(row)}")
