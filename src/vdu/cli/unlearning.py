"""`vdu unlearn`: everything that can be refused is refused before the work starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vdu.cli.options import (
    Config,
    DeviceOption,
    GuidanceScale,
    Model,
    Overwrite,
    Precision,
    PromptsFile,
    Seed,
    make_prompts,
    open_model,
)
from vdu.cli.yardstick import Yardstick, open_yardstick
from vdu.errors import VduError
from vdu.prompts import Prompts, quoted_prompts

if TYPE_CHECKING:
    from vdu.result import Result

__all__ = ["parse_settings", "unlearn_command"]

Share = Annotated[float | None, typer.Option(help="undesired share of what the model makes unasked; default: estimate")]
Target = Annotated[str | None, typer.Option(help="the detector's class that is forgotten; default: most seen")]

STATE_HELP = "folder for the run's state: the same command goes on from what is made and from its last step"
RESULT_SIZES_OF_MODEL = 2  # the new pipeline, and the report with room to spare


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """``["steps=80", "schedule=cosine"]`` to a dictionary; values are JSON where they can be."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator or not name:
            raise VduError(f"--set {pair!r} is not NAME=VALUE: write for instance --set steps=80")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


def _unlearn_with_progress(steps_hint: int, **arguments: Any) -> Result:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from vdu.unlearning import unlearn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    bar = Progress(*columns, TextColumn("{task.fields[figures]}"), TimeElapsedColumn(), console=Console(stderr=True))
    task = bar.add_task("forgetting", total=steps_hint, figures="")
    seen = {"share": "–"}

    def on_stage(stage: str) -> None:
        bar.start()
        bar.update(task, figures=stage)

    def on_step(record: Any, check: Any) -> None:
        if check is not None:
            seen["share"] = f"forget {check.forget_share:.1%}, none {check.none_share:.1%}"
        bar.update(task, completed=record.step, figures=f"loss {record.loss:.4f}, {seen['share']}")

    try:
        return unlearn(on_stage=on_stage, on_step=on_step, **arguments)
    except KeyboardInterrupt:
        bar.stop()
        typer.echo(f"vdu: interrupted: {_what_is_left(arguments['state_folder'])}", err=True)
        raise
    finally:
        if bar.live.is_started:  # else it would write an empty line before an error's
            bar.stop()


def _what_is_left(state: Path | None) -> str:
    from vdu.loop import STATE_FILE
    from vdu.weights.kept_parts import PREPARATION_FOLDER, SUFFIX

    if state is None:
        return "nothing was kept (with --state FOLDER a run can be gone on with)"
    if (state / STATE_FILE).exists():
        return f"the same command goes on from the last step in {state}"
    made = any((state / PREPARATION_FOLDER).glob(f"*{SUFFIX}"))
    return f"the same command goes on from what is made in {state}" if made else f"nothing was kept in {state} yet"


def _refuse_early(
    model: str,
    method: str,
    given: dict[str, Any],
    prompts: Prompts | None,
    share: float | None,
    seed: int,
    precision: str,
    device: str | None,
) -> None:
    """Raise `VduError` for what `unlearn` would refuse without reading anything: real images take long to look at."""
    from vdu.device import resolve_device
    from vdu.inputs import Given
    from vdu.methods import find_method
    from vdu.model_zoo import named_model
    from vdu.precision import resolve_precision
    from vdu.unlearning import checked_numbers, with_shipped

    checked_numbers(share, seed)
    resolve_precision(precision, resolve_device(device))
    with_shipped(named_model(model), find_method(method), Given(**given), prompts)


def unlearn_command(
    model: Model,
    forget: Annotated[Path, typer.Option(help="folder of images that the model must never produce again")],
    out: Annotated[Path, typer.Option(help="where the clean pipeline and its report go")],
    method: Annotated[str, typer.Option(help="`vdu methods` lists them")] = "vdu",
    retain: Annotated[Path | None, typer.Option(help="folder of images to keep, for the methods that need it")] = None,
    teacher: Annotated[str | None, typer.Option(help="a model of the undesired content (esd)")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="a setting of the method, NAME=VALUE")] = None,
    share: Share = None,
    posterior: Annotated[Path | None, typer.Option(help="posterior file (vdu-paper)")] = None,
    detector: Annotated[
        str | None,
        typer.Option(
            help="for the figures: classifier folder, .json file of classes in words, nudenet or module:function"
        ),
    ] = None,
    target: Target = None,
    prompt: Annotated[
        str | None, typer.Option(help="text-to-image: caption of all forget images, in place of metadata.csv")
    ] = None,
    neutral_prompts: PromptsFile = None,
    guidance_scale: GuidanceScale = None,
    config: Config = None,
    save: Annotated[str, typer.Option(help="pipeline; delta: only what changed (`vdu apply`); lora")] = "pipeline",
    guard_with_detector: Annotated[
        bool, typer.Option("--guard-with-detector", help="let the guard count with the detector too")
    ] = False,
    reference: Annotated[Path | None, typer.Option(help="real images (folder) or feature file, for u-FID")] = None,
    samples: Annotated[int, typer.Option(min=2, help="evaluation samples of each model")] = 1000,
    sampler_steps: Annotated[int, typer.Option(min=1, help="sampler steps of the evaluation samples")] = 12,
    seed: Seed = 0,
    precision: Precision = "auto",
    device: DeviceOption = None,
    skip_unreadable: Annotated[bool, typer.Option("--skip-unreadable", help="go on without broken images")] = False,
    overwrite: Overwrite = False,
    state: Annotated[Path | None, typer.Option(help=STATE_HELP)] = None,
) -> None:
    """Make MODEL forget the images in FORGET and write a clean pipeline with a report."""
    from vdu.backbone.teacher import is_only_file
    from vdu.methods import find_method, make_settings
    from vdu.output import refuse_existing, refuse_overlap, require_space
    from vdu.result import check_form

    values = parse_settings(set_ or [])
    settings = make_settings(find_method(method), values)
    check_form(save, settings.parameters)
    inputs = (model, forget, retain, teacher, posterior, detector, reference, neutral_prompts, config)
    refuse_existing(out, overwrite, folder=True, inputs=inputs)
    if state is not None:
        refuse_overlap(out, state)
    prompts = make_prompts(model, prompt, neutral_prompts, guidance_scale)
    given = {"forget": forget, "retain": retain, "teacher": teacher, "posterior": posterior}
    _refuse_early(model, method, given, prompts, share, seed, precision, device)
    backbone = open_model(model, prompts, None if is_only_file(teacher, model) else config)
    if backbone.prompts is not None:
        settings = settings.for_text()
        if not any(backbone.prompts.neutral):
            typer.echo("notice: without --neutral-prompts the empty prompt alone holds what is to stay")
    check_form(save, settings.parameters, backbone.pipeline)
    require_space(out, RESULT_SIZES_OF_MODEL * backbone.size_bytes)
    yardstick = open_yardstick(model, backbone, forget, detector, target, reference, skip_unreadable)
    if guard_with_detector and yardstick.detector is None:
        raise VduError("--guard-with-detector needs a detector: give --detector too")
    if guard_with_detector and not settings.guard_every_steps:
        raise VduError("--guard-with-detector needs a guard: take --set guard_every_steps=N too, or leave it out")
    del backbone  # `unlearn` loads the model anew, and two of a large one may not fit
    result = _unlearn_with_progress(
        settings.steps,
        model=model,
        forget=forget,
        method=method,
        retain=retain,
        teacher=teacher,
        settings=values,
        posterior=posterior,
        share=share,
        detector=yardstick.detector if guard_with_detector else None,
        target=yardstick.target if guard_with_detector else None,
        prompts=prompts,
        config=config,
        seed=seed,
        precision=precision,
        device=device,
        skip_unreadable=skip_unreadable,
        state_folder=state,
    )
    try:
        _measure(result, yardstick, samples, sampler_steps)
    except BaseException:  # what took hours is not lost where it cannot be measured
        _save(result, out, overwrite, save)
        typer.echo(f"the result could not be measured; it is in {out}, without figures", err=True)
        raise
    _save(result, out, overwrite, save)
    _tell_outcome(result.record, result.evaluation.record if result.evaluation else None, share)
    typer.echo(f"\n{save}: {out}   report: {out / 'report.html'}")


def _save(result: Result, out: Path, overwrite: bool, form: str) -> None:
    try:
        result.save(out, overwrite=overwrite, form=form)
    except BaseException:
        if result.saved_in is not None:
            typer.echo(f"no pictures could be drawn of the result; it is in {out}, without a report", err=True)
        raise


def _tell_outcome(record: dict[str, Any], evaluation: dict[str, Any] | None, given_share: float | None = None) -> None:
    """How the run ended, on what share of the original's images it went, and the verdict."""
    from vdu.report.verdict import cautions, verdict

    for notice in (record.get("retain") or {}).get("notices", []):
        typer.echo(f"notice: images to keep, {notice}")
    source = record["share_source"]
    if source:
        known = "assumed: one image cannot say; --share sets it" if source == "assumed" else source
        made = "makes without being asked for it" if record.get("prompts") else "makes"
        typer.echo(f"undesired share of what the original {made}: {record['share']:.1%} ({known})")
    elif given_share is not None:
        typer.echo(f"notice: nothing that {record['method']} asked for made use of --share")
    if record.get("words_found"):
        typer.echo(f"words that bring it, told by what is made of prompts: {quoted_prompts(record['words_found'])}")
    resumed = record.get("resumed_at_step") or record.get("prepared_parts_read")
    since = f" since the run was gone on with after step {record['resumed_at_step']}" if resumed else ""
    typer.echo(f"{record['steps']} steps, {record['seconds']:.0f} s{since}: {record['stop_reason']}")
    if not record["best_step"] and not record["guard"]:
        typer.echo("NO STEP WAS TAKEN: what is written is where training begins", err=True)
    for said in (*cautions(record, evaluation), verdict(record, evaluation)):
        typer.echo(f"\n{said}")


def _measure(result: Result, yardstick: Yardstick, samples: int, sampler_steps: int) -> None:
    """Say the figures where there is a detector."""
    from vdu.cli.evaluation import print_evaluation
    from vdu.evaluation.comparison import Sampler

    if yardstick.detector:
        typer.echo(f"measuring on {samples} samples of each model", err=True)
        precision, device = result.record["precision"], result.record["device"]
        sampler = Sampler(count=samples, steps=sampler_steps, precision=precision, device=device)
        measured = result.evaluate(yardstick.detector, yardstick.target, reference=yardstick.reference, sampler=sampler)
        print_evaluation(measured)
