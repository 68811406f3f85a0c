"""`vdu evaluate`, and the table of figures that `vdu unlearn` prints too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vdu.cli.options import (
    Config,
    DetectorOption,
    DeviceOption,
    GuidanceScale,
    Model,
    Overwrite,
    Precision,
    PromptsFile,
    Seed,
    Target,
    make_prompts,
    open_model,
)

if TYPE_CHECKING:
    from vdu.evaluation.comparison import Evaluation

__all__ = ["evaluate", "print_evaluation", "shipped_judge"]


def print_evaluation(evaluation: Evaluation) -> None:
    from vdu.report.figures import figure_rows

    typer.echo(f"{'':32s}{'original':>28s}{'unlearned':>30s}")
    for row in figure_rows(evaluation.record):
        cells = [f"{c.value} {c.interval}".strip() for c in (row.before, row.after)]
        typer.echo(f"{row.label:32s}{cells[0]:>28s}{cells[1]:>30s}")
    for notice in (evaluation.record["extractor"] or {}).get("reference_notices", []):
        typer.echo(f"notice: real images, {notice}")


def shipped_judge(model: str, target: str, detector: str | None, reference: Path | None) -> tuple[str, Path | None]:
    """Detector and reference as given; without a detector those that come with the shipped ``model``."""
    from vdu.errors import VduError
    from vdu.model_zoo import named_model

    if detector is not None:
        return detector, reference
    zoo = named_model(model)
    if zoo is None:
        kinds = "a folder, a .json file, nudenet or module:function"
        raise VduError(f"{model} does not come with a detector: give --detector ({kinds})")
    return str(zoo.classifier_of(target)), reference or zoo.shipped_reference


def _tell_hashes(original: str, unlearned: str, figures: dict[str, Any]) -> None:
    """Of the weights that were measured, and whether the unlearned folder's own record is of these."""
    from vdu.records import read_record

    measured = figures["original_sha256"], figures["unlearned_sha256"]
    typer.echo(f"\nweights, sha256: original {measured[0]}, unlearned {measured[1]}")
    path = Path(unlearned) / "unlearning.json"
    if not path.is_file():
        return
    written = read_record(path)
    for name, of, found in zip(("model_sha256", "result_sha256"), (original, unlearned), measured, strict=True):
        if written.get(name) not in (None, found):
            typer.echo(f"{path} IS NOT OF THESE WEIGHTS: its {name} is {written[name]}, that of {of} is not", err=True)


def evaluate(
    original: Model,
    unlearned: Model,
    target: Target,
    detector: DetectorOption = None,
    reference: Annotated[Path | None, typer.Option(help="real images (folder) or feature file, for u-FID")] = None,
    oracle: Annotated[str | None, typer.Option(help="a model retrained without the class")] = None,
    samples: Annotated[int, typer.Option(min=2, help="samples of each model")] = 2000,
    sampler_steps: Annotated[int, typer.Option(min=1, help="sampler steps")] = 12,
    seed: Seed = 1000,
    precision: Precision = "auto",
    device: DeviceOption = None,
    prompts: PromptsFile = None,
    guidance_scale: GuidanceScale = None,
    config: Config = None,
    out: Annotated[Path | None, typer.Option(help="write the figures to this JSON file")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare two models on paired samples: PUL, shares, u-FID, KID, precision and recall."""
    from vdu.device import resolve_device
    from vdu.evaluation.comparison import Sampler
    from vdu.evaluation.comparison import evaluate as compare
    from vdu.output import refuse_existing
    from vdu.records import write_record
    from vdu.report.verdict import cautions, verdict

    if out:
        refuse_existing(out, overwrite)
    detector, reference = shipped_judge(original, target, detector, reference)
    sampler = Sampler(sampler_steps, precision, seed, samples, str(resolve_device(device)))
    asked = make_prompts(original, None, prompts, guidance_scale)
    first, second = open_model(original, asked, config), open_model(unlearned, asked)
    third = open_model(oracle, asked) if oracle else None
    evaluation = compare(first, second, detector, target, reference=reference, oracle=third, sampler=sampler)
    evaluation.record.update(original=original, unlearned=unlearned)
    if out:
        write_record(out, evaluation.record)
    print_evaluation(evaluation)
    for said in (*cautions({}, evaluation.record), verdict({}, evaluation.record)):
        typer.echo(f"\n{said}")
    _tell_hashes(original, unlearned, evaluation.record)
