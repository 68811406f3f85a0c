"""`vdu.unlearn`: a pipeline and images in; a `Result` out, whose ``pipeline`` is an ordinary diffusers pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vdu import __version__
from vdu.backbone import Backbone, load_backbone, source_of, weights_sha256
from vdu.backbone.low_rank import factors
from vdu.backbone.teacher import is_only_file
from vdu.detector.contract import DetectorSource
from vdu.device import resolve_device
from vdu.errors import VduError
from vdu.guard import Check, Guard
from vdu.inputs import Given, Inputs, read_inputs
from vdu.loop import LoopResult, StepRecord, check_resumable, run_digest, run_loop, state_bytes
from vdu.methods import find_method, make_settings, own_source_sha256
from vdu.model_zoo import ZooModel, named_model
from vdu.objective.contract import Direction, Method, MethodSettings
from vdu.objective.needs import check_needs
from vdu.posterior import Posterior
from vdu.precision import resolve_precision
from vdu.preparation.judge import detector_judge, label_free_judge
from vdu.preparation.preparation import Preparation
from vdu.prompts import Prompts
from vdu.provenance import made_by
from vdu.result import Result
from vdu.weights.kept_parts import KeptParts
from vdu.weights.parameters import LORA, trained_copy

__all__ = ["Request", "checked_numbers", "unlearn", "with_shipped"]


def checked_numbers(share: Any, seed: Any) -> tuple[float | None, int]:
    """Python's own, also where numpy's were given: a stream of random numbers is named by how its seed is written."""
    if share is not None and not (isinstance(share, Real) and 0 < float(share) < 1):
        raise VduError(f"share must lie between 0 and 1, not {share}: it is the undesired part of what the model makes")
    if not isinstance(seed, Integral) or not 0 <= int(seed) < 2**63:
        raise VduError(f"seed must be a whole number from 0 to 2^63 - 1, not {seed}")
    return None if share is None else float(share), int(seed)


@dataclass(frozen=True)
class Request:
    """One accepted request: what is done, to what, with what."""

    method: Method
    values: MethodSettings
    backbone: Backbone
    inputs: Inputs
    share: float | None
    seed: int
    precision: str
    place: torch.device
    on_stage: Callable[[str], None] | None
    parts: KeptParts = field(default_factory=KeptParts)

    def prepare(self, network: nn.Module) -> tuple[Preparation, Direction, Guard | None]:
        """What the method derives from its inputs, its objective for ``network``, and the guard if one is wanted."""
        given, teacher = self.inputs, self.inputs.teacher
        self.backbone.network.to(self.place)
        self.backbone.probe()
        preparation = Preparation(
            self.backbone,
            given.undesired(self.backbone),
            self.seed,
            self.precision,
            own_count=self.values.own_samples,
            bank_items=self.values.bank_items,
            score_steps=self.values.score_steps,
            given_share=self.share,
            given_posterior=given.posterior,
            given_retain=given.kept(self.backbone),
            given_teacher=teacher.network.to(self.place) if teacher else None,
            lora_rank=self.values.lora_rank if self.values.parameters == LORA else None,
            gradient_checkpointing=self.values.gradient_checkpointing,
            on_stage=self.on_stage,
            parts=self.parts,
        )
        objective = self.method.build(self.values, preparation, network.to(self.place))
        if not isinstance(objective, Direction):
            found = type(objective).__name__
            raise VduError(f"build of method {self.method.name} returned a {found}: it must return an Objective")
        if not self.values.guard_every_steps:
            return preparation, objective, None
        preparation.begin("sampling for the guard")
        look = detector_judge(*given.judge, self.backbone.decode) if given.judge else label_free_judge(preparation)
        return preparation, objective, Guard(preparation, look)

    def identity(self, model_sha256: str) -> dict[str, Any]:
        """What tells this run's state from another's, beside its settings, seed and precision.

        ``model_sha256``: of the original's weights.
        """
        prior = self.inputs.posterior if "posterior" in self.values.needs else None
        return {
            "vdu_version": __version__,
            "method": self.method.name,
            "method_source": own_source_sha256(self.method),
            "model": model_sha256,
            "beside the network": self.backbone.beside_sha256,
            "share": self.share,
            "posterior": prior.sha256 if prior else None,
        } | self.inputs.identity()

    def record(self, preparation: Preparation, outcome: LoopResult) -> dict[str, Any]:
        """Settings, inputs, steps and looks of the guard."""
        prior = preparation.given_posterior if "posterior" in self.values.needs else None
        return {
            "seed": self.seed,
            "precision": self.precision,
            "device": str(self.place),
            **self.inputs.record(),
            "method": self.method.name,
            "settings": self.values.model_dump(),
            "share": preparation.share if preparation.share_source else None,
            "share_source": preparation.share_source,
            "prompts_found": preparation.asking.found_count if preparation.asking else 0,
            "words_tried": list(preparation.asking.tried) if preparation.asking else [],
            "words_found": list(preparation.found_words),
            "posterior": {"source": prior.source, "count": prior.count, "floor_share": prior.floor_share}
            if prior
            else None,
            "steps": outcome.steps,
            "best_step": outcome.best_step,
            "resumed_at_step": outcome.resumed_at_step,
            "prepared_parts_read": self.parts.read,
            "stop_reason": outcome.stop_reason,
            "history": [asdict(r) for r in outcome.history],
            "guard": [asdict(c) for c in outcome.checks],
            **made_by(),
        }


def with_shipped(
    zoo: ZooModel | None, method: Method, given: Given, prompts: Prompts | None
) -> tuple[Given, Prompts | None]:
    """``given`` and ``prompts`` with what a shipped model brings along in place of what was not given.

    Raises `VduError` where ``method`` lacks something, or makes no use of what was given.
    """
    if prompts is not None and not isinstance(prompts, Prompts):
        raise VduError(f"prompts is a {type(prompts).__name__}: give vdu.Prompts(neutral=[…], forget=[…])")
    if given.posterior is not None and "posterior" not in method.settings.needs:
        raise VduError(f"method {method.name} makes no use of --posterior: leave it out, or choose another --method")
    if zoo is not None:
        prior = zoo.shipped_posterior if given.posterior is None else given.posterior
        given, prompts = replace(given, posterior=prior), zoo.prompts if prompts is None else prompts
    words = prompts.forget if prompts and any(text.strip() for text in prompts.forget) else None
    check_needs(method, vars(given) | {"prompt": words})
    return given, prompts


@torch.inference_mode(False)
@torch.enable_grad()
def unlearn(
    model: Any,
    forget: Any,
    method: str | Method = "vdu",
    *,
    retain: Any = None,
    teacher: Any = None,
    settings: dict[str, Any] | None = None,
    posterior: str | Path | Posterior | None = None,
    share: float | None = None,
    detector: DetectorSource | None = None,
    target: str | int | None = None,
    prompts: Prompts | None = None,
    config: str | Path | None = None,
    seed: int = 0,
    precision: str = "auto",
    device: str | None = None,
    skip_unreadable: bool = False,
    state_folder: str | Path | None = None,
    on_stage: Callable[[str], None] | None = None,
    on_step: Callable[[StepRecord, Check | None], None] | None = None,
) -> Result:
    """Make ``model`` (pipeline, folder, checkpoint file, zoo name or hub id) forget the images ``forget``.

    ``forget``: folder, list of files, `datasets.Dataset`, or tensor ``(N, C, H, W)`` in [-1, 1]; ``retain``, images to
    keep, likewise, for the methods that need them. ``teacher``: a model of the undesired content (`esd`). ``share``: π,
    the undesired share of what the model makes unasked, in (0, 1); estimated if not given. ``detector`` and ``target``
    let the guard count the class; without them it judges by the forget images alone. ``prompts``: for a text-to-image
    model, which also reads captions from ``metadata.csv`` or ``.jsonl``. ``precision``: see `vdu.precision`;
    ``config``: see `vdu.backbone.load_backbone`. ``state_folder`` makes the run resumable.
    ``on_stage`` is told what is being prepared, first when all input is accepted; ``on_step`` is called after a step.
    Raises `VduError` before any work for whatever cannot work. Panda et al., arXiv 2510.04058.
    """
    started = time.monotonic()
    chosen = find_method(method)
    values = make_settings(chosen, settings or {})
    share, seed = checked_numbers(share, seed)
    place = resolve_device(device)
    precision = resolve_precision(precision, place)
    zoo = named_model(model) if isinstance(model, str) else None
    given = Given(forget, retain, teacher, posterior, detector, target, skip_unreadable, config)
    given, prompts = with_shipped(zoo, chosen, given, prompts)
    backbone = load_backbone(model, prompts, None if is_only_file(teacher, model) else config)
    values = values if backbone.prompts is None else values.for_text()
    inputs = read_inputs(backbone, given)
    request = Request(chosen, values, backbone, inputs, share, seed, precision, place, on_stage)
    network = trained_copy(backbone, values.parameters, values.lora_rank, seed, values.gradient_checkpointing)
    folder = Path(state_folder) if state_folder else None
    original = {"model": zoo.name if zoo else source_of(model), "model_sha256": weights_sha256(backbone.network)}
    identity = None
    if folder:
        identity = request.identity(original["model_sha256"])
        digest = run_digest(values, seed, precision, identity)
        of_parts = run_digest(values, seed, precision, identity, without=values.of_steps)
        check_resumable(folder, digest, of_parts, state_bytes(network, values))
        request = replace(request, parts=KeptParts(folder, of_parts))
    if on_stage:
        on_stage("preparing")
    return _carry_out(request, network, original, started, identity, folder, on_step)


def _carry_out(
    request: Request,
    network: nn.Module,
    original: dict[str, str],
    started: float,
    identity: dict[str, Any] | None,
    state_folder: Path | None,
    on_step: Callable[[StepRecord, Check | None], None] | None,
) -> Result:
    """Prepare, train, and put the result together."""
    preparation, objective, guard = request.prepare(network)
    prepared = time.monotonic()
    outcome = run_loop(
        network,
        objective,
        request.values,
        guard,
        seed=request.seed,
        precision=request.precision,
        identity=identity,
        state_folder=state_folder,
        on_step=on_step,
    )
    request.backbone.network.to("cpu")
    pipeline = request.backbone.with_network(outcome.network)
    record = {
        "schema": 1,
        "vdu_version": __version__,
        **original,
        "result_sha256": weights_sha256(pipeline.unet),
        "passes": request.backbone.passes,
        "preparation_seconds": round(prepared - started, 2),
        "seconds": round(time.monotonic() - started, 2),
    } | request.record(preparation, outcome)
    return Result(pipeline, record, request.backbone, request.inputs.forget, low_rank=factors(outcome.network))
