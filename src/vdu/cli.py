"""The command line: parses, calls the library, prints. Heavy imports happen inside the commands."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vdu.errors import VduError

if TYPE_CHECKING:
    from vdu.evaluation import Evaluation
    from vdu.unlearning import Result

__all__ = ["app", "main"]

app = typer.Typer(
    help="Make a diffusion model forget a folder of images, with evidence.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
posterior_app = typer.Typer(help="The Gaussian posterior p(θ|D) over the pre-trained weights.", no_args_is_help=True)
bench_app = typer.Typer(help="Benchmarks: suites of runs with one result file each.", no_args_is_help=True)
zoo_app = typer.Typer(help="Small trained models that come with vdu.", no_args_is_help=True)
app.add_typer(posterior_app, name="posterior")
app.add_typer(bench_app, name="bench")
app.add_typer(zoo_app, name="zoo")

Model = Annotated[str, typer.Argument(help="pipeline folder, zoo name or hub id")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace the output if it exists")]
Seed = Annotated[int, typer.Option(help="random seed")]
Precision = Annotated[str, typer.Option(help="bf16 or fp32")]


def _quiet() -> None:
    """No progress bars and advice of other libraries between our own lines."""
    from diffusers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


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
    with Progress(
        *columns, TextColumn("{task.fields[figures]}"), TimeElapsedColumn(), console=Console(stderr=True)
    ) as p:
        task = p.add_task("forgetting", total=steps_hint, figures="preparing: own samples, discriminator, forget score")
        seen = {"share": "–"}

        def on_step(record: Any, check: Any) -> None:
            if check is not None:
                seen["share"] = f"forget {check.forget_share:.1%}, none {check.none_share:.1%}"
            p.update(task, completed=record.step, figures=f"loss {record.loss:.4f}, {seen['share']}")

        return unlearn(on_step=on_step, **arguments)


def _print_evaluation(evaluation: Evaluation) -> None:
    from vdu.report import figure_rows

    typer.echo(f"{'':32s}{'original':>28s}{'unlearned':>28s}")
    for row in figure_rows(evaluation.record):
        cells = [f"{c.value} {c.interval}".strip() for c in (row.before, row.after)]
        typer.echo(f"{row.label:32s}{cells[0]:>28s}{cells[1]:>28s}")


@app.command(name="unlearn")
def unlearn_command(
    model: Model,
    forget: Annotated[Path, typer.Option(help="folder of images that the model must never produce again")],
    out: Annotated[Path, typer.Option(help="where the clean pipeline and its report go")],
    method: Annotated[str, typer.Option(help="vdu, vdu-paper, guided, capped-ascent, ga")] = "vdu",
    set_: Annotated[list[str] | None, typer.Option("--set", help="a setting of the method, NAME=VALUE")] = None,
    share: Annotated[
        float | None, typer.Option(help="undesired share of what the model makes; default: estimate")
    ] = None,
    posterior: Annotated[Path | None, typer.Option(help="posterior file (vdu-paper)")] = None,
    detector: Annotated[str | None, typer.Option(help="classifier folder or module:function; for the figures")] = None,
    target: Annotated[
        str | None, typer.Option(help="the detector's class that is forgotten; default: most seen")
    ] = None,
    guard_with_detector: Annotated[bool, typer.Option(help="let the guard count with the detector too")] = False,
    reference: Annotated[Path | None, typer.Option(help="real images (folder) or feature file, for u-FID")] = None,
    samples: Annotated[int, typer.Option(help="evaluation samples of each model")] = 1000,
    sampler_steps: Annotated[int, typer.Option(help="DDIM steps of the evaluation samples")] = 10,
    seed: Seed = 0,
    precision: Precision = "bf16",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps; default: the best there is")] = None,
    skip_unreadable: Annotated[bool, typer.Option("--skip-unreadable", help="go on without broken images")] = False,
    overwrite: Overwrite = False,
    state: Annotated[Path | None, typer.Option(help="folder for the run's state; run again to resume")] = None,
) -> None:
    """Make MODEL forget the images in FORGET and write a clean pipeline with a report."""
    from vdu.unlearning import most_seen_class, refuse_existing

    refuse_existing(out, overwrite)
    _quiet()
    from vdu.detector import load_detector
    from vdu.evaluation import Sampler
    from vdu.methods import find_method, make_settings
    from vdu.model_zoo import find_zoo_model

    values = parse_settings(set_ or [])
    steps = make_settings(find_method(method), values).steps
    zoo = find_zoo_model(model)
    source = detector or (str(zoo.classifier) if zoo else None)
    judge = load_detector(source) if source else None
    yardstick = reference or (zoo.reference if zoo and not detector else None)
    if judge and target:
        judge.class_index(target)
    result = _unlearn_with_progress(
        steps,
        model=model,
        forget=forget,
        method=method,
        settings=values,
        posterior=posterior,
        share=share,
        detector=judge if guard_with_detector else None,
        target=target,
        seed=seed,
        precision=precision,
        device=device,
        skip_unreadable=skip_unreadable,
        state_folder=state,
    )
    for notice in result.forget.notices:
        typer.echo(f"notice: {notice}")
    if judge:
        sampler = Sampler(count=samples, steps=sampler_steps, precision=precision)
        name = target or most_seen_class(judge, result.forget)
        _print_evaluation(result.evaluate(judge, name, reference=yardstick, sampler=sampler))
    result.save(out, overwrite=overwrite)
    typer.echo(f"{result.record['steps']} steps, {result.record['seconds']:.0f} s: {result.record['stop_reason']}")
    typer.echo(f"clean pipeline: {out}   report: {out / 'report.html'}")


@app.command()
def evaluate(
    original: Model,
    unlearned: Model,
    detector: Annotated[str, typer.Option(help="classifier folder or module:function")],
    target: Annotated[str, typer.Option(help="the detector's class that was forgotten")],
    reference: Annotated[Path | None, typer.Option(help="real images (folder) or feature file, for u-FID")] = None,
    oracle: Annotated[str | None, typer.Option(help="a model retrained without the class")] = None,
    samples: Annotated[int, typer.Option(help="samples of each model")] = 2000,
    sampler_steps: Annotated[int, typer.Option(help="DDIM steps")] = 10,
    seed: Seed = 1000,
    precision: Precision = "bf16",
    out: Annotated[Path | None, typer.Option(help="write the figures to this JSON file")] = None,
) -> None:
    """Compare two models on paired samples: PUL, shares, u-FID, KID, precision and recall."""
    _quiet()
    from vdu.checkpoint import replacing
    from vdu.evaluation import Sampler
    from vdu.evaluation import evaluate as compare
    from vdu.model_zoo import find_zoo_model

    zoo = [find_zoo_model(name) for name in (original, unlearned)]
    models = [z.pipeline if z else name for z, name in zip(zoo, (original, unlearned), strict=True)]
    sampler = Sampler(sampler_steps, precision, seed, samples)
    first, second = models
    evaluation = compare(first, second, detector, target, reference=reference, oracle=oracle, sampler=sampler)
    evaluation.record.update(original=original, unlearned=unlearned)
    _print_evaluation(evaluation)
    if out:
        with replacing(out) as beside:
            beside.write_text(json.dumps(evaluation.record, indent=2) + "\n")


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="recipe name or .toml file")],
    data: Annotated[Path, typer.Option(help="folder with the corpus")],
    out: Annotated[Path, typer.Option(help="run folder; run again to resume")],
) -> None:
    """Train an unconditional DDPM from a recipe, with the checkpoints that its posterior is made of."""
    _quiet()
    from vdu.training import read_recipe
    from vdu.training import train as run

    typer.echo(f"pipeline: {run(read_recipe(recipe), data, out)}")


@app.command()
def sample(
    model: Model,
    out: Annotated[Path, typer.Option(help="PNG file of a grid")],
    count: Annotated[int, typer.Option(min=1)] = 64,
    steps: Annotated[int, typer.Option(min=1, help="DDIM steps")] = 20,
    seed: Seed = 0,
) -> None:
    """Write a grid of samples."""
    _quiet()
    from vdu.backbone import load_backbone
    from vdu.checkpoint import replacing
    from vdu.grids import image_grid
    from vdu.model_zoo import find_zoo_model
    from vdu.sampling import sample as draw

    zoo = find_zoo_model(model)
    backbone = load_backbone(zoo.pipeline if zoo else model)
    images = draw(backbone, backbone.network, count, seed, steps=steps)
    with replacing(out) as beside:
        image_grid(images, columns=min(16, count)).save(beside, format="PNG")
    typer.echo(str(out))


@posterior_app.command("checkpoints")
def posterior_checkpoints(
    model: Model,
    checkpoints: Annotated[list[Path], typer.Argument(help=".safetensors files or pipeline folders")],
    out: Annotated[Path, typer.Option()],
    anchor: Annotated[str, typer.Option(help="weights (what is sampled) or mean (of the checkpoints)")] = "weights",
) -> None:
    """From saved checkpoints of the pre-training run, streamed."""
    from vdu.posterior import from_checkpoints

    _write_posterior(from_checkpoints(_load(model), checkpoints, anchor=anchor), out)


@posterior_app.command("fisher")
def posterior_fisher(
    model: Model,
    out: Annotated[Path, typer.Option()],
    samples: Annotated[int, typer.Option(min=2, help="own samples, one gradient each")] = 256,
    scale: Annotated[float, typer.Option(help="prior standard deviation")] = 1e-2,
    seed: Seed = 0,
) -> None:
    """From the diagonal Fisher on the model's own samples: for a model with one checkpoint."""
    from vdu.posterior import from_fisher
    from vdu.sampling import sample as draw

    backbone = _load(model)
    images = draw(backbone, backbone.network, samples, seed, steps=10)
    _write_posterior(from_fisher(backbone, images, seed=seed, scale=scale), out)


@posterior_app.command("isotropic")
def posterior_isotropic(
    model: Model, out: Annotated[Path, typer.Option()], scale: Annotated[float, typer.Option()] = 1e-3
) -> None:
    """The same spread for every parameter: plain L2 to the released weights."""
    from vdu.posterior import isotropic

    _write_posterior(isotropic(_load(model), scale), out)


@posterior_app.command("show")
def posterior_show(file: Annotated[Path, typer.Argument()]) -> None:
    """Spread, floor share and a summary of every layer."""
    from vdu.posterior import load_posterior

    _show_posterior(load_posterior(file))


def _load(model: str) -> Any:
    _quiet()
    from vdu.backbone import load_backbone
    from vdu.model_zoo import find_zoo_model

    zoo = find_zoo_model(model)
    return load_backbone(zoo.pipeline if zoo else model)


def _write_posterior(posterior: Any, out: Path) -> None:
    posterior.save(out)
    _show_posterior(posterior)
    typer.echo(f"posterior: {out}")


def _show_posterior(posterior: Any) -> None:
    from vdu.posterior import summarise

    typer.echo(f"source {posterior.source}, K = {posterior.count}, model {posterior.model_sha256[:12]}")
    typer.echo(f"{'layer':32s}{'parameters':>11s}{'median sd':>12s}{'least':>12s}{'most':>12s}{'at floor':>10s}")
    for name, s in summarise(posterior).items():
        spread = f"{s.median_sd:12.3e}{s.smallest_sd:12.3e}{s.largest_sd:12.3e}{s.floor_share:10.1%}"
        typer.echo(f"{name:32s}{s.parameters:11,d}{spread}")


@zoo_app.command("list")
def zoo_list() -> None:
    """Names, classes and folders of the shipped models."""
    from vdu.model_zoo import zoo_models

    for model in zoo_models():
        classes = ", ".join(sorted(p.name for p in (model.folder / "forget").iterdir()))
        typer.echo(f"{model.name}: classes {classes}; forget images in {model.folder / 'forget'}")


@zoo_app.command("build")
def zoo_build(
    run: Annotated[Path, typer.Option(help="run folder of `vdu train`")],
    data: Annotated[Path, typer.Option(help="folder with the corpus")],
    out: Annotated[Path, typer.Option(help="zoo folder to write")],
) -> None:
    """Make a zoo folder from a finished training run; trains the classifier and measures quality."""
    _quiet()
    from vdu.zoo_build import build_zoo_model

    typer.echo(json.dumps(build_zoo_model(run, data, out)["quality"], indent=1))


@bench_app.command("run")
def bench_run(
    suite: Annotated[str, typer.Argument(help="suite name or .toml file")],
    results: Annotated[Path, typer.Option(help="folder of result files")] = Path("results"),
    limit: Annotated[int | None, typer.Option(help="at most this many runs now")] = None,
) -> None:
    """Make the runs of a suite that are not there yet, one JSON file each."""
    _quiet()
    if suite == "step-cost":
        from vdu.bench.step_cost import run_step_cost

        run_step_cost(results, typer.echo)
        return
    from vdu.bench.suite import read_suite, run_suite

    run_suite(read_suite(suite), results, limit, typer.echo)


@bench_app.command("show")
def bench_show(
    suite: Annotated[str, typer.Argument()],
    results: Annotated[Path, typer.Option()] = Path("results"),
    format_: Annotated[str, typer.Option("--format", help="table or json")] = "table",
) -> None:
    """Print the results of a suite."""
    from vdu.bench.tables import render

    typer.echo(render(suite, results, format_))


@bench_app.command("plot")
def bench_plot(
    suite: Annotated[str, typer.Argument()],
    out: Annotated[Path, typer.Option(help="SVG or PNG file")],
    results: Annotated[Path, typer.Option()] = Path("results"),
) -> None:
    """Plot PUL against u-FID of all runs of a suite."""
    from vdu.bench.plots import frontier

    frontier(suite, results, out)
    typer.echo(str(out))


def main() -> None:
    """Entry point: a `VduError` is one line on stderr and exit code 2."""
    try:
        app()
    except VduError as error:
        sys.stderr.write(f"vdu: {error}\n")
        sys.exit(2)
