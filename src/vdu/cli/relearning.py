"""`vdu relearn`: how soon a forgotten class comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vdu.cli.evaluation import shipped_judge
from vdu.cli.options import DetectorOption, DeviceOption, Overwrite, Precision, Seed, Target, open_model

__all__ = ["relearn_command"]

PipelineModel = Annotated[str, typer.Argument(help="pipeline folder, zoo name or hub id of a model without text")]


def _print_look(name: str, look: dict[str, Any]) -> None:
    share, none = look["share"], look["share_none"]["value"]
    shown = f"{share['value']:.1f} % ({share['low']:.1f} to {share['high']:.1f})"
    typer.echo(f"{name:>10s}  step {look['step']:>4d}  {shown:<24s} none {'–' if none is None else f'{none:.1f} %'}")


def _print_ratio(ratio: float | None) -> None:
    shown = "not measured" if ratio is None else f"{ratio:.2f}"
    typer.echo(f"ratio to the oracle: {shown} (1: forgotten, far under 1: hidden)")


def relearn_command(
    original: PipelineModel,
    unlearned: PipelineModel,
    forget: Annotated[Path, typer.Option(help="folder of images of the class to train on again")],
    target: Target,
    detector: DetectorOption = None,
    oracle: Annotated[str | None, typer.Option(help="a model retrained without the class, to compare with")] = None,
    steps: Annotated[int, typer.Option(min=1, help="training steps; sampled after 0, 5, 10, 20, 40 … of them")] = 80,
    rate: Annotated[float, typer.Option(help="learning rate")] = 1e-4,
    samples: Annotated[int, typer.Option(min=2, help="samples at each look")] = 500,
    sampler_steps: Annotated[int, typer.Option(min=1, help="sampler steps")] = 12,
    seed: Seed = 1000,
    precision: Precision = "auto",
    device: DeviceOption = None,
    out: Annotated[Path | None, typer.Option(help="write the figures to this JSON file")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Train the unlearned model on forget images again: after how many steps is the class back?"""
    from vdu.device import resolve_device
    from vdu.evaluation.comparison import Sampler
    from vdu.evaluation.relearning import Relearning, relearn
    from vdu.output import refuse_existing
    from vdu.records import write_record

    if out:
        refuse_existing(out, overwrite)
    place = resolve_device(device)
    judge, _ = shipped_judge(original, target, detector, None)
    record = relearn(
        open_model(original, device=place),
        open_model(unlearned, device=place),
        forget,
        judge,
        target,
        oracle=open_model(oracle, device=place) if oracle else None,
        settings=Relearning(steps, rate),
        sampler=Sampler(sampler_steps, precision, seed, samples, str(place)),
        on_look=_print_look,
    )
    record.update(models={"original": original, "unlearned": unlearned, "oracle": oracle})
    for name, back in record["steps_to_return"].items():
        when = "at no look" if back is None else f"at step {back}"
        typer.echo(f"{name}: half of the original's share is back {when}")
    if oracle:
        _print_ratio(record["ratio_to_oracle"])
    if out:
        write_record(out, record)
