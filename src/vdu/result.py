"""What `vdu.unlearn` hands back: an ordinary diffusers pipeline, its record, and how to measure, show and save it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from vdu.backbone import Backbone
from vdu.checkpoint import refuse_existing, replacing
from vdu.detector import Detector, load_detector
from vdu.errors import VduError
from vdu.evaluation import Evaluation, Sampler, evaluate
from vdu.image_set import ImageSet

__all__ = ["Result", "most_seen_class"]

PREVIEW_IMAGES = 48


@dataclass
class Result:
    """What `unlearn` hands back. ``record`` is JSON-able: every setting, seed, hash, step and look of the guard."""

    pipeline: Any
    record: dict[str, Any]
    original: Backbone
    forget: ImageSet
    evaluation: Evaluation | None = None

    def evaluate(
        self, detector: str | Path | Detector, target: str | None = None, *, reference: Any = None, **options: Any
    ) -> Evaluation:
        """Measure the result (see `vdu.evaluate`); the report then shows the figures.

        Without ``target`` the class that the detector sees in most forget images is meant.
        """
        judge = load_detector(detector)
        target = target or most_seen_class(judge, self.forget)
        self.evaluation = evaluate(
            self.original, Backbone(self.pipeline), judge, target, reference=reference, **options
        )
        self.evaluation.record.update(original=self.record["model"], unlearned="this result")
        return self.evaluation

    @cached_property
    def _preview(self) -> Evaluation:
        """Samples of both models without figures, for a result that was not measured."""
        sampler = Sampler(count=PREVIEW_IMAGES)
        return Evaluation({}, sampler.draw(self.original), sampler.draw(Backbone(self.pipeline)), [])

    def report(self, path: str | Path = "report.html") -> Path:
        """Write one self-contained HTML file."""
        from vdu.report import write_report

        shown = self.evaluation or self._preview
        with replacing(Path(path)) as beside:
            write_report(
                beside,
                unlearning=self.record,
                evaluation=shown.record or None,
                before=shown.before[:PREVIEW_IMAGES],
                after=shown.after[:PREVIEW_IMAGES],
                forget=self.forget.images,
                marks=shown.marks[:PREVIEW_IMAGES] or None,
            )
        return Path(path)

    def picture(self, path: str | Path = "before-after.png", pairs: int = 32) -> Path:
        """Write original and unlearned samples of equal seeds as one picture."""
        from vdu.grids import before_after

        shown = self.evaluation or self._preview
        marks = shown.marks[:pairs] or None
        with replacing(Path(path)) as beside:
            before_after(shown.before[:pairs], shown.after[:pairs], 16, 2, marks).save(beside, format="PNG")
        return Path(path)

    def save(self, out: str | Path, *, overwrite: bool = False) -> Path:
        """Pipeline folder with report, model card and records, renamed into place as a whole."""
        from vdu.model_card import write_model_card

        folder = Path(out)
        refuse_existing(folder, overwrite, folder=True)
        with replacing(folder) as beside:
            self.pipeline.save_pretrained(beside)
            (beside / "unlearning.json").write_text(json.dumps(self.record, indent=2) + "\n")
            measured = self.evaluation.record if self.evaluation else None
            if measured is not None:
                (beside / "evaluation.json").write_text(json.dumps(measured, indent=2) + "\n")
            write_model_card(beside, self.record, measured)
            self.report(beside / "report.html")
            self.picture(beside / "before-after.png")
        return folder


def most_seen_class(detector: Detector, forget: ImageSet) -> str:
    """The class that the detector sees in most forget images. Raises `VduError` where no class has the majority."""
    predicted = detector(forget.images).predicted
    counts = torch.bincount(predicted[predicted >= 0], minlength=len(detector.class_names))
    if int(counts.max()) * 2 <= len(predicted):
        raise VduError("the detector sees no class in most forget images: name the class with --target")
    return detector.class_names[int(counts.argmax())]
