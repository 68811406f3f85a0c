"""`vdu.unlearn`: a pipeline and images in; a `Result` out, whose ``pipeline`` is an ordinary diffusers pipeline."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from vdu import __version__
from vdu.backbone import Backbone, load_backbone, weights_sha256
from vdu.captions import forget_captions
from vdu.checkpoint import refuse_existing, replacing
from vdu.delta import DELTA_FILE, write_delta
from vdu.detector import Detector, load_detector
from vdu.errors import VduError, nearest
from vdu.evaluation import Evaluation, Sampler, evaluate
from vdu.forget_set import ForgetSet, load_forget_set
from vdu.guard import Check, Guard, detector_judge, label_free_judge
from vdu.loop import LoopResult, StepRecord, run_loop
from vdu.methods import find_method, make_settings
from vdu.model_zoo import ZooModel, find_zoo_model
from vdu.noising import Clean
from vdu.objective import MethodSettings
from vdu.parameters import choose_parameters
from vdu.posterior import Posterior, load_posterior
from vdu.preparation import Preparation
from vdu.prompts import Prompts
from vdu.provenance import code_commit, package_versions

__all__ = ["Result", "check_form", "most_seen_class", "unlearn"]

PREVIEW_IMAGES = 48
FORMS = ("pipeline", "delta")


@dataclass
class Result:
    """What `unlearn` hands back. ``record`` is JSON-able: every setting, seed, hash, step and look of the guard."""

    pipeline: Any
    record: dict[str, Any]
    original: Backbone
    forget: ForgetSet
    evaluation: Evaluation | None = None

    def evaluate(
        self, detector: str | Path | Detector, target: str | None = None, *, reference: Any = None, **options: Any
    ) -> Evaluation:
        """Measure the result (see `vdu.evaluate`); the report then shows the figures.

        Without ``target`` the class that the detector sees in most forget images is meant.
        """
        judge = load_detector(detector)
        target = target or most_seen_class(judge, self.forget)
        self.evaluation = evaluate(self.original, self._unlearned, judge, target, reference=reference, **options)
        self.evaluation.record.update(original=self.record["model"], unlearned="this result")
        return self.evaluation

    @property
    def _unlearned(self) -> Backbone:
        return load_backbone(self.pipeline, self.original.prompts)

    @cached_property
    def _preview(self) -> Evaluation:
        """Samples of both models without figures, for a result that was not measured."""
        sampler = Sampler(count=PREVIEW_IMAGES, device=self.record["device"])
        return Evaluation({}, sampler.draw(self.original), sampler.draw(self._unlearned), [])

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
        from vdu.grids import before_after, thumbnails

        shown = self.evaluation or self._preview
        before, after, marks = thumbnails(shown.before[:pairs]), thumbnails(shown.after[:pairs]), shown.marks[:pairs]
        with replacing(Path(path)) as beside:
            before_after(before, after, 16, 2, marks or None).save(beside, format="PNG")
        return Path(path)

    def save(self, out: str | Path, *, overwrite: bool = False, form: str = "pipeline") -> Path:
        """A folder with report, model card and records, renamed into place as a whole.

        ``form``: the whole ``pipeline``, or only what changed as a ``delta`` (see `vdu.delta`).
        """
        from vdu.model_card import write_model_card

        folder = Path(out)
        check_form(form)
        refuse_existing(folder, overwrite, folder=True)
        with replacing(folder) as beside:
            if form == "pipeline":
                self.pipeline.save_pretrained(beside)
            else:
                write_delta(beside / DELTA_FILE, self.original.network, self.pipeline.unet)
            (beside / "unlearning.json").write_text(json.dumps(self.record, indent=2) + "\n")
            measured = self.evaluation.record if self.evaluation else None
            if measured is not None:
                (beside / "evaluation.json").write_text(json.dumps(measured, indent=2) + "\n")
            write_model_card(beside, self.record, measured, form)
            self.report(beside / "report.html")
            self.picture(beside / "before-after.png")
        return folder


def check_form(form: str) -> None:
    """Raises `VduError` for a form of the result that is not known."""
    if form not in FORMS:
        raise VduError(f"unknown form {form!r} of the result: {nearest(form, FORMS)}")


def most_seen_class(detector: Detector, forget: ForgetSet) -> str:
    """The class that the detector sees in most forget images. Raises `VduError` where no class has the majority."""
    predicted = detector(forget.images).predicted
    counts = torch.bincount(predicted[predicted >= 0], minlength=len(detector.class_names))
    if int(counts.max()) * 2 <= len(predicted):
        raise VduError("the detector sees no class in most forget images: name the class with --target")
    return detector.class_names[int(counts.argmax())]


def _check_numbers(share: float | None, precision: str) -> None:
    if share is not None and not 0 < share < 1:
        raise VduError(f"share must lie between 0 and 1, not {share}: it is the undesired part of what the model makes")
    if precision not in ("fp32", "bf16"):
        raise VduError(f"unknown precision {precision!r}: give fp32 or bf16")


def _resolve_device(device: str | None) -> torch.device:
    from accelerate import PartialState

    try:
        return torch.device(device) if device else PartialState().device
    except RuntimeError as error:
        raise VduError(f"unknown device {device!r}: give cpu, cuda or mps") from error


def _prior(posterior: Any, zoo_posterior: Path | None, backbone: Backbone) -> Posterior | None:
    """The posterior that was given, or the shipped one where the model is a shipped one."""
    if posterior is None:
        return load_posterior(zoo_posterior, backbone) if zoo_posterior else None
    return posterior if isinstance(posterior, Posterior) else load_posterior(Path(posterior), backbone)


def unlearn(
    model: Any,
    forget: Any,
    method: str = "vdu",
    *,
    settings: dict[str, Any] | None = None,
    posterior: str | Path | Posterior | None = None,
    share: float | None = None,
    detector: str | Path | Detector | None = None,
    target: str | None = None,
    prompts: Prompts | None = None,
    seed: int = 0,
    precision: str = "bf16",
    device: str | None = None,
    skip_unreadable: bool = False,
    state_folder: str | Path | None = None,
    on_ready: Callable[[], None] | None = None,
    on_step: Callable[[StepRecord, Check | None], None] | None = None,
) -> Result:
    """Make ``model`` (pipeline, folder, zoo name or hub id) forget the images ``forget``.

    ``forget``: folder, list of files, `datasets.Dataset`, or tensor ``(N, C, H, W)`` in [-1, 1]. ``share``: π, the
    undesired share of what the model makes, in (0, 1); estimated when not given. ``detector`` and ``target`` let the
    guard count the class; without them it judges by the forget images alone. ``prompts``: for a text-to-image model,
    which also reads captions from ``metadata.csv`` or ``.jsonl``. ``state_folder`` makes the run resumable.
    ``on_ready`` is called when all input is accepted and the work begins, ``on_step`` after each step.
    Raises `VduError` before any work for whatever cannot work. Panda et al., arXiv 2510.04058.
    """
    started = time.monotonic()
    chosen = find_method(method)
    values = make_settings(chosen, settings or {})
    _check_numbers(share, precision)
    place = _resolve_device(device)
    zoo = find_zoo_model(model) if isinstance(model, str) else None
    backbone = load_backbone(zoo.pipeline if zoo else model, prompts)
    images = load_forget_set(forget, backbone.shape, skip_unreadable=skip_unreadable)
    captions = forget_captions(backbone, forget, images)
    prior = _prior(posterior, zoo.posterior if zoo else None, backbone)
    if "posterior" in chosen.settings.needs and prior is None:
        raise VduError(f"method {method} needs a posterior: give --posterior FILE (`vdu posterior` makes one)")
    judge = load_detector(detector) if detector is not None else None
    index = judge.class_index(target or most_seen_class(judge, images)) if judge else None
    network = backbone.trainable_copy(values.gradient_checkpointing)
    choose_parameters(network, values.parameters)
    if on_ready:
        on_ready()
    backbone.network.to(place)
    clean = Clean(backbone.encode(images.images), backbone.condition(captions))
    preparation = Preparation(backbone, clean, seed, precision, given_share=share, given_posterior=prior)
    objective = chosen.build(values, preparation, network.to(place))
    look = (
        detector_judge(judge, index, backbone.decode) if judge and index is not None else label_free_judge(preparation)
    )
    guard = Guard(preparation, look)
    prepared = time.monotonic()
    identity = {"method": method, "model": weights_sha256(backbone.network), "forget": images.sha256, "share": share}
    asked = asdict(backbone.prompts) if backbone.prompts else None
    outcome = run_loop(
        network,
        objective,
        values,
        guard,
        seed=seed,
        precision=precision,
        identity=identity | {"prompts": asked, "captions": captions},
        state_folder=Path(state_folder) if state_folder else None,
        on_step=on_step,
    )
    backbone.network.to("cpu")
    pipeline = backbone.with_network(outcome.network)
    record = {
        "schema": 1,
        "vdu_version": __version__,
        "model": _model_name(model, zoo),
        "model_sha256": identity["model"],
        "result_sha256": weights_sha256(pipeline.unet),
        "seed": seed,
        "precision": precision,
        "device": place.type,
        "forget": _forget_record(forget, images),
        "prompts": asked,
        "target": judge.class_names[index] if judge and index is not None else None,
        "guard_judge": judge.name if judge else "label-free",
        "preparation_seconds": round(prepared - started, 2),
        "seconds": round(time.monotonic() - started, 2),
    } | _method_record(method, values, preparation, outcome)
    return Result(pipeline, record, backbone, images)


def _model_name(model: Any, zoo: ZooModel | None) -> str:
    """How the model was named, or its class where an object was given."""
    return zoo.name if zoo else str(model) if isinstance(model, (str, Path)) else type(model).__name__


def _forget_record(source: Any, images: ForgetSet) -> dict[str, Any]:
    named = str(source) if isinstance(source, (str, Path)) else type(source).__name__
    return {"source": named, "images": len(images), "sha256": images.sha256, "notices": list(images.notices)}


def _method_record(
    method: str, values: MethodSettings, preparation: Preparation, outcome: LoopResult
) -> dict[str, Any]:
    prior = preparation.given_posterior
    used = "posterior" in values.needs and prior is not None
    return {
        "method": method,
        "settings": values.model_dump(),
        "share": preparation.__dict__.get("share", preparation.given_share),
        "share_source": "given" if preparation.given_share is not None else "estimated",
        "posterior": {"source": prior.source, "count": prior.count, "floor_share": prior.floor_share}
        if used and prior
        else None,
        "steps": outcome.steps,
        "best_step": outcome.best_step,
        "stop_reason": outcome.stop_reason,
        "history": [asdict(r) for r in outcome.history],
        "guard": [asdict(c) for c in outcome.checks],
        "git_commit": code_commit(),
        "versions": package_versions(),
    }
