"""`vdu bench …`: suites of runs, their tables and plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from vdu.cli.options import Overwrite, make_app
from vdu.errors import VduError
from vdu.quiet import quiet

__all__ = ["app"]

app = make_app("Benchmarks: suites of runs with one result file each.")

Suite = Annotated[str, typer.Argument(help="suite name or .toml file")]
Results = Annotated[Path, typer.Option(help="folder of result files")]
Forget = Annotated[
    Path | None, typer.Option(help="images by class, from `vdu data prepare`, of a model that ships none")
]
ThisMethod = Annotated[list[str] | None, typer.Option("--method", help="this method only; may be given again")]
ThisTarget = Annotated[list[str] | None, typer.Option("--target", help="this target only; may be given again")]
ThisSeed = Annotated[list[int] | None, typer.Option("--seed", help="this seed only; may be given again")]


@app.command("run")
def bench_run(
    suite: Suite,
    results: Results = Path("results"),
    method: ThisMethod = None,
    target: ThisTarget = None,
    seed: ThisSeed = None,
    limit: Annotated[int | None, typer.Option(min=1, help="at most this many runs now")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="runs side by side, each on its share of the cores")] = 1,
    forget: Forget = None,
    checkpoints: Annotated[
        Path | None, typer.Option(help="RUN/checkpoints of `vdu train`, for a suite that makes posteriors of them")
    ] = None,
    cluster: Annotated[str | None, typer.Option(help="address of a Ray cluster that makes them, or auto")] = None,
) -> None:
    """Make the runs of a suite that are not there yet, one JSON file and one PNG of samples each."""
    quiet()
    of_steps = suite == "step-cost" or suite.startswith("memory-")
    choice = {"method": method, "target": target, "seed": seed, "forget": forget, "checkpoints": checkpoints}
    given = [f"--{name}" for name, value in (choice | {"cluster": cluster}).items() if value]
    given += ["--jobs"] * (jobs > 1) + ["--limit"] * (limit is not None and suite == "step-cost")
    if of_steps and given:
        raise VduError(f"{suite} is measured whole, one after the other: leave {' and '.join(given)} out")
    if suite == "step-cost":
        from vdu.bench.step_cost import run_step_cost

        run_step_cost(results, typer.echo)
        return
    if suite.startswith("memory-"):
        from vdu.bench.memory import run_memory

        run_memory(results, suite.removeprefix("memory-"), typer.echo, limit=limit)
        return
    from vdu.bench.runner import run_suite
    from vdu.bench.suite import read_suite

    asked = read_suite(suite, forget, checkpoints, also=("step-cost", "memory-sd15"))
    part = asked.part(methods=method or (), targets=target or (), seeds=seed or ())
    run_suite(part, results, limit, jobs, typer.echo, cluster)


@app.command("oracle")
def bench_oracle(
    suite: Suite,
    oracles: Annotated[
        Path, typer.Option(help="folder with a run folder of `vdu train --without CLASS` for each CLASS")
    ],
    results: Results = Path("results"),
) -> None:
    """Measure models that were trained without a class, as the rows `retrain` of a suite."""
    quiet()
    from vdu.bench.oracle import measure_oracles
    from vdu.bench.suite import read_suite

    measure_oracles(read_suite(suite), oracles, results, typer.echo)


@app.command("cost")
def bench_cost(
    suite: Suite,
    target: ThisTarget = None,
    samples: Annotated[int, typer.Option(min=8, help="samples of each look at how much is gone")] = 500,
    forget: Forget = None,
    results: Results = Path("results"),
) -> None:
    """Measure what each method of a suite costs until 95 % of a class is gone, as the results cost-SUITE."""
    quiet()
    from vdu.bench.forgetting_cost import run_forgetting_cost
    from vdu.bench.suite import read_suite

    run_forgetting_cost(read_suite(suite, forget).part(targets=target or ()), results, samples, typer.echo)


@app.command("show")
def bench_show(
    suite: Suite,
    results: Results = Path("results"),
    method: ThisMethod = None,
    target: ThisTarget = None,
    seed: ThisSeed = None,
    columns: Annotated[
        str, typer.Option(help="only these figures, as the JSON names them, commas between: pul,u_fid_ratio")
    ] = "",
    by: Annotated[str, typer.Option(help="target or seed: lines of its own for each")] = "",
    format_: Annotated[str, typer.Option("--format", help="table or json")] = "table",
) -> None:
    """Print the results of a suite."""
    from vdu.bench.tables import named_columns, render

    chosen: dict[str, Sequence[object]] = {"method": method or (), "target": target or (), "seed": seed or ()}
    typer.echo(render(suite, results, format_, chosen, named_columns(columns), by))


@app.command("page")
def bench_page(
    pages: Annotated[list[Path], typer.Argument(help="Markdown files")], results: Results = Path("results")
) -> None:
    """Make the tables of pages anew, each by the command in the comment before it."""
    from vdu.bench.pages import refresh

    for page in pages:
        typer.echo(f"{page}: {'made anew' if refresh(page, results) else 'as it was'}")


@app.command("plot")
def bench_plot(
    suite: Suite,
    out: Annotated[Path, typer.Option(help="SVG, PNG or PDF file")],
    kind: Annotated[str, typer.Option(help="frontier, cost, classes or amount")] = "frontier",
    results: Results = Path("results"),
    overwrite: Overwrite = False,
) -> None:
    """Plot PUL against u-FID, seconds, or the amount of images or checkpoints; or what became of every class."""
    from vdu.bench.plots import plot
    from vdu.output import refuse_existing

    refuse_existing(out, overwrite)
    plot(kind, suite, results, out)
    typer.echo(str(out))
