"""What `vdu.unlearn` hands back: an ordinary diffusers pipeline, its record, and how to measure, show and save it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdu.backbone import Backbone, load_backbone
from vdu.detector.contract import Detector, DetectorSource, load_detector, most_seen_class
from vdu.errors import VduError, nearest
from vdu.evaluation.comparison import Evaluation, Sampler, evaluate
from vdu.images.image_set import ImageSet
from vdu.model_zoo import ZooModel
from vdu.output import refuse_existing, replacing
from vdu.records import write_record
from vdu.weights.delta import DELTA_FILE, write_delta
from vdu.weights.lora_files import write_lora
from vdu.weights.parameters import LORA

__all__ = ["Result", "check_form", "shipped_detector"]

PREVIEW_IMAGES = 48
FORMS = ("pipeline", "delta", "lora")


@dataclass(repr=False)
class Result:
    """What `unlearn` hands back. ``record`` is JSON-able: every setting, seed, hash, step and look of the guard.

    ``low_rank``: the LoRA's factors where one was trained; ``pipeline`` has them merged.
    """

    pipeline: Any
    record: dict[str, Any]
    original: Backbone
    forget: ImageSet
    evaluation: Evaluation | None = None
    low_rank: dict[str, Tensor] = field(default_factory=dict)
    saved_in: Path | None = None  # the folder that `save` wrote last

    def __repr__(self) -> str:
        from vdu.report.verdict import verdict

        said = verdict(self.record, self.evaluation.record if self.evaluation else None)
        return f"<{self.record['model']} after {self.record['method']}, {self.record['steps']} steps. {said}>"

    def evaluate(
        self, detector: DetectorSource, target: str | int | None = None, *, reference: Any = None, **options: Any
    ) -> Evaluation:
        """Measure the result (see `vdu.evaluate`, which takes the ``options``, a ``sampler`` for one); the report then
        shows the figures.

        Without ``target`` the class that the detector sees in most forget images is meant.
        """
        judge = load_detector(detector)
        judge.check(self.original.shape)
        target = most_seen_class(judge, self.forget) if target is None else target
        options.setdefault("sampler", Sampler(precision=self.record["precision"], device=self.record["device"]))
        self.evaluation = evaluate(self.original, self._unlearned, judge, target, reference=reference, **options)
        self.evaluation.record.update(original=self.record["model"], unlearned="this result")
        return self.evaluation

    @property
    def _unlearned(self) -> Backbone:
        return load_backbone(self.pipeline, self.original.prompts)

    @cached_property
    def _preview(self) -> Evaluation:
        """Samples of both models without figures, for a result that was not measured."""
        sampler = Sampler(count=PREVIEW_IMAGES, precision=self.record["precision"], device=self.record["device"])
        return Evaluation({}, sampler.draw(self.original), sampler.draw(self._unlearned), [])

    def report(self, path: str | Path = "report.html", *, overwrite: bool = False) -> Path:
        """Write one self-contained HTML file. Raises `VduError` where there is one, unless it is to be replaced."""
        from vdu.report.page import write_report

        refuse_existing(Path(path), overwrite)
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

    def picture(self, path: str | Path = "before-after.png", pairs: int = 32, *, overwrite: bool = False) -> Path:
        """Write the first ``pairs`` of samples of equal seeds (48 are kept, 64 of a measured result) as one picture.

        An existing file as `report` does.
        """
        from vdu.images.grids import before_after, thumbnails

        refuse_existing(Path(path), overwrite)
        if pairs < 1:
            raise VduError(f"{pairs} pairs are no picture: take 1 or more")
        shown = self.evaluation or self._preview
        pairs = min(pairs, len(shown.before))
        before, after, marks = thumbnails(shown.before[:pairs]), thumbnails(shown.after[:pairs]), shown.marks[:pairs]
        with replacing(Path(path)) as beside:
            before_after(before, after, 16, 2, marks or None).save(beside, format="PNG")
        return Path(path)

    def save(self, out: str | Path, *, overwrite: bool = False, form: str = "pipeline") -> Path:
        """A folder with report, model card and records, renamed into place as a whole.

        ``form``: the whole ``pipeline``, only what changed as a ``delta`` (see `vdu.weights.delta`), or the
        ``lora`` that was trained, for ``load_lora_weights`` on the original. Where no samples can be drawn, the folder
        is written without report and picture, and the error raised after that.
        """
        from vdu.report.model_card import write_model_card

        folder = Path(out)
        check_form(form, self.record["settings"]["parameters"], self.pipeline)
        refuse_existing(folder, overwrite, folder=True)
        failed = self._why_nothing_is_shown()
        with replacing(folder) as beside:
            if form == "pipeline":
                self.pipeline.save_pretrained(beside)
            elif form == "lora":
                write_lora(beside, self.pipeline, self.low_rank)
            else:
                write_delta(beside / DELTA_FILE, self.original.network, self.pipeline.unet)
            write_record(beside / "unlearning.json", self.record)
            measured = self.evaluation.record if self.evaluation else None
            if measured is not None:
                write_record(beside / "evaluation.json", measured)
            write_model_card(beside, self.record, measured, form)
            failed = failed or self._show(beside)
        self.saved_in = folder
        if failed is not None:
            raise failed
        return folder

    def _show(self, folder: Path) -> Exception | None:
        """Write report and picture, or say what is wrong with them; a disk that is full is raised."""
        try:
            self.report(folder / "report.html")
            self.picture(folder / "before-after.png")
        except (VduError, OSError):
            raise
        except Exception as error:
            return error
        return None

    def _why_nothing_is_shown(self) -> BaseException | None:
        """What went wrong while samples were drawn for report and picture: no reason to lose the weights."""
        try:
            _ = self.evaluation or self._preview
        except BaseException as error:
            return error
        return None


def check_form(form: str, parameters: str, pipeline: Any = None) -> None:
    """Raises `VduError` for a form of the result that is not known, or that the run or the pipeline cannot have."""
    if form not in FORMS:
        raise VduError(f"unknown form {form!r} of the result: {nearest(form, FORMS)}")
    if form == "lora" and parameters != LORA:
        raise VduError(f"parameters={parameters} leaves no LoRA to save: train one with --set parameters=lora")
    if form == "lora" and pipeline is not None and not hasattr(pipeline, "save_lora_weights"):
        raise VduError(f"a {type(pipeline).__name__} has no load_lora_weights: save the pipeline or a delta")


def shipped_detector(zoo: ZooModel, forget: ImageSet, target: str | None = None) -> Detector:
    """The classifier that comes with a shipped model; of several, the one that has ``target``, or else the one that
    sees one and the same class in most forget images."""
    if target is not None:
        return load_detector(zoo.classifier_of(target))
    judges = [load_detector(folder) for folder in zoo.concept_classifiers.values() or [zoo.classifier]]

    def largest(judge: Detector) -> int:
        predicted = judge(forget.images).predicted
        return int(torch.bincount(predicted[predicted >= 0], minlength=1).max())

    return max(judges, key=largest)
