"""`vdu apply` and `vdu revert`: put a delta on its original, or take it off again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vdu.cli.options import Config, Model, Overwrite, open_model

if TYPE_CHECKING:
    from vdu.backbone import Backbone

__all__ = ["apply_command", "revert_command"]

Delta = Annotated[Path, typer.Argument(help="what `vdu unlearn --save delta` wrote: folder or file")]
Out = Annotated[Path, typer.Option(help="where the pipeline goes")]


def _save(
    model: str, delta: Path, out: Path, overwrite: bool, config: Path | None, move: Callable[[Backbone, Path], Any]
) -> None:
    from vdu.backbone import weights_sha256
    from vdu.output import MOVED_FILE, refuse_existing, replacing
    from vdu.records import write_record

    refuse_existing(out, overwrite, folder=True, inputs=(model, delta, config))
    pipeline = move(open_model(model, config=config), delta)
    with replacing(out) as beside:
        pipeline.save_pretrained(beside)
        moved = {"model": model, "delta": str(delta), "result_sha256": weights_sha256(pipeline.unet)}
        write_record(beside / MOVED_FILE, moved)
    typer.echo(f"pipeline: {out}")


def apply_command(model: Model, delta: Delta, out: Out, config: Config = None, overwrite: Overwrite = False) -> None:
    """Make the unlearned pipeline from the original MODEL and a DELTA."""
    from vdu.weights.delta import apply_delta

    _save(model, delta, out, overwrite, config, apply_delta)


def revert_command(model: Model, delta: Delta, out: Out, config: Config = None, overwrite: Overwrite = False) -> None:
    """Make the original pipeline again from the unlearned MODEL and its DELTA."""
    from vdu.weights.delta import revert_delta

    _save(model, delta, out, overwrite, config, revert_delta)
