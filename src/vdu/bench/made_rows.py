"""Rows of a suite that are made already, held against what it asks today: a table must not average both.

What an older file does not say is not compared. Rows that were refused or have failed hold no figures.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from vdu.backbone import load_backbone, weights_sha256
from vdu.bench.given import given_images
from vdu.bench.suite import Run, Suite, result_path, zoo_model
from vdu.detector.contract import load_detector
from vdu.errors import VduError
from vdu.images.image_set import load_image_set
from vdu.methods import find_method, make_settings, own_source_sha256
from vdu.records import read_record

__all__ = ["FAILED", "REFUSED", "MadeRows", "asked_of", "finished"]

REFUSED, FAILED = "refused", "failed"  # the status of rows without figures, which are made again


def asked_of(suite: Suite, run: Run) -> dict[str, Any]:
    """What a run is made and measured with, as far as it is not the default."""
    source = own_source_sha256(find_method(run.arm.method))
    own = {"source of the method": source} if source else {}
    return _used({"arm": run.arm.model_dump(mode="json", exclude_defaults=True)} | suite.asked | own)


def _used(asked: dict[str, Any]) -> dict[str, Any]:
    """Without the things that this run's prompts do not ask for."""
    concept = asked.get("concept")
    if not concept or (asked.get("arm") or {}).get("things"):
        return asked
    return asked | {"concept": {key: value for key, value in concept.items() if key != "things"}}


def _settings(run: Run, takes_text: bool) -> dict[str, Any]:
    """All that its method takes, defaults too."""
    values = make_settings(find_method(run.arm.method), run.arm.settings)
    return (values.for_text() if takes_text else values).model_dump(mode="json")


def _refuse(path: Path, differs: str) -> None:
    raise VduError(f"{path} was made with {differs}: remove it, or give another --results")


def _refuse_other(path: Path, found: dict[str, Any], today: dict[str, Any]) -> None:
    for name, value in found.items():
        if value != today.get(name):
            _refuse(path, f"other {'settings' if name == 'arm' else name.replace('_', ' ')}")


def finished(path: Path) -> dict[str, Any] | None:
    """The record of a run that was measured, None where there is none."""
    record = read_record(path) if path.is_file() else {"status": REFUSED}
    return None if record.get("status") in (REFUSED, FAILED) else record


def _measured_with(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Of the original and of what judged it, as a record of figures has them."""
    judges = {"detector": evaluation.get("detector")} | (evaluation.get("detectors") or {})
    said = {"weights of the model": evaluation.get("original_sha256")}
    said |= {f"contents of the {name}": judge["sha256"] for name, judge in judges.items() if judge}
    return {name: value for name, value in said.items() if value}


class MadeRows:
    """Those of ``suite`` below ``results``. Model, judges and images are read once, and only where there are rows."""

    def __init__(self, suite: Suite, results: Path) -> None:
        self.suite, self.results, self.zoo = suite, results, zoo_model(suite)
        self._forget: dict[tuple[Path, ...], str] = {}

    def refuse_others(self) -> None:
        """Raise `VduError` for a row of another model, judge or number of samples, of whatever method it is."""
        for path in sorted((self.results / self.suite.name).glob("*.json")):
            record = finished(path)
            if record is None:
                continue
            asked = _used(record.get("asked") or {})
            today = _used({"arm": asked.get("arm")} | self.suite.asked)
            _refuse_other(path, {name: asked[name] for name in self.suite.asked if name in asked}, today)
            if measured := _measured_with(record.get("evaluation") or {}):
                _refuse_other(path, measured, self._today)

    def has(self, run: Run) -> bool:
        """Whether its row is there. Raises `VduError` for one that was asked otherwise, or with other defaults."""
        path = result_path(self.results, self.suite, run)
        record = finished(path)
        if record is None:
            return False
        _refuse_other(path, _used(record.get("asked") or {}), asked_of(self.suite, run))
        made = record.get("unlearning") or {}
        taken = _settings(run, takes_text=bool(made.get("prompts")))  # a suite of classes may have such a model too
        for name, value in (made.get("settings") or {}).items():
            if value != taken.get(name):
                _refuse(path, f"{name} = {value}, today it would be {taken.get(name)}")
        given = (made.get("forget") or {}).get("sha256")
        # Shipped images that were renewed leave rows of methods that do not look at them as they are.
        if given and self.zoo.has_own_images and given != self._forget_sha256(run):
            _refuse(path, "other forget images")
        return True

    @cached_property
    def _original(self) -> tuple[str, tuple[int, int, int]]:
        """Hash and shape of the model, which is not kept."""
        backbone = load_backbone(self.zoo.pipeline)
        return weights_sha256(backbone.network), backbone.shape

    @cached_property
    def _today(self) -> dict[str, Any]:
        folders = self.zoo.concept_classifiers if self.suite.concept else {"detector": self.zoo.judge}
        judges = {name: load_detector(folder).record() for name, folder in folders.items()}
        return _measured_with({"original_sha256": self._original[0], "detectors": judges})

    def _forget_sha256(self, run: Run) -> str:
        """Of the images that it would be given, as a record has it."""
        images = tuple(given_images(self.suite, run)[0])
        if images not in self._forget:
            whole = load_image_set(list(images), self._original[1])
            self._forget[images] = whole.without_copies()[0].sha256
        return self._forget[images]
