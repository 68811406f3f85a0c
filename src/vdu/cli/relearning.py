"""`vdu relearn`: how soon a forgotten class comes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vdu.cli.evaluation import shipped_judge
from vdu.cli.options import DetectorFolder, Model, Overwrite, Precision, Seed, Target, open_model

__all__ = ["relearn_command"]


def _cell(look: dict[str, Any]) -> str:
    share, none = look["share"], look["share_none"]["value"]
    shown = f"{share['value']:.1f} ({share['low']:.1f}…{share['high']:.1f})"
    return f"{shown:>22s}{none:8.1f}"


def _print_curves(record: dict[str, Any]) -> None:
    """Share of the class and of none by steps, two columns for each model."""
    curves = record["curves"]
    typer.echo(f"{'steps':>8s}" + "".join(f"{name + ', %':>22s}{'none':>8s}" for name in curves))
    typer.echo(f"{'original':>8s}{_cell(record['original'])}")
    for looks in zip(*curves.values(), strict=True):
        typer.echo(f"{looks[0]['step']:>8d}" + "".join(map(_cell, looks)))
    for name, steps in record["steps_to_return"].items():
        when = "at no look" if steps is None else f"at step {steps}"
        typer.echo(f"{name}: half of the original's share is back {when}")


def relearn_command(
    original: Model,
    unlearned: Model,
    forget: Annotated[Path, typer.Option(help="folder of images of the class to train on again")],
    target: Target,
    detector: DetectorFolder = None,
    oracle: Annotated[str | None, typer.Option(help="a model retrained without the class, to compare with")] = None,
    steps: Annotated[int, typer.Option(min=1, help="training steps; sampled after 0, 5, 10, 20, 40 … of them")] = 80,
    rate: Annotated[float, typer.Option(help="learning rate")] = 1e-4,
    samples: Annotated[int, typer.Option(min=2, help="samples at each look")] = 500,
    sampler_steps: Annotated[int, typer.Option(min=1, help="sampler steps")] = 12,
    seed: Seed = 1000,
    precision: Precision = "auto",
    out: Annotated[Path | None, typer.Option(help="write the figures to this JSON file")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Train the unlearned model on forget images again: after how many steps is the class back?"""
    from vdu.checkpoint import refuse_existing, replacing
    from vdu.evaluation import Sampler
    from vdu.relearning import Relearning, relearn

    if out:
        refuse_existing(out, overwrite)
    judge, _ = shipped_judge(original, target, detector, None)
    record = relearn(
        open_model(original),
        open_model(unlearned),
        forget,
        judge,
        target,
        oracle=open_model(oracle) if oracle else None,
        settings=Relearning(steps, rate),
        sampler=Sampler(sampler_steps, precision, seed, samples),
    )
    record.update(models={"original": original, "unlearned": unlearned, "oracle": oracle})
    _print_curves(record)
    if out:
        with replacing(out) as beside:
            beside.write_text(json.dumps(record, indent=2) + "\n")
