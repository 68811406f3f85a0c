"""`vdu zoo …`: the shipped models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from vdu.cli.options import Overwrite, make_app
from vdu.quiet import quiet

__all__ = ["app"]

app = make_app("Small trained models that come with vdu.")


@app.command("list")
def zoo_list() -> None:
    """Names, classes and folders of the shipped models."""
    from vdu.model_zoo import zoo_models

    for model in zoo_models():
        typer.echo(f"{model.name}: classes {', '.join(model.class_names)}; forget images {model.forget_images}")


@app.command("build")
def zoo_build(
    run: Annotated[Path, typer.Option(help="run folder of `vdu train`")],
    data: Annotated[Path, typer.Option(help="folder with the corpus")],
    out: Annotated[Path, typer.Option(help="zoo folder to write")],
    overwrite: Overwrite = False,
) -> None:
    """Make a zoo folder from a finished training run; trains the classifier and measures quality."""
    quiet()
    from vdu.output import refuse_existing
    from vdu.training.zoo_build import build_zoo_model

    refuse_existing(out, overwrite, folder=True, sources=(run, data))
    typer.echo(json.dumps(build_zoo_model(run, data, out)["quality"], indent=1))
