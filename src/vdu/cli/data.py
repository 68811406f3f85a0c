"""`vdu data …`: forget folders from the user's own copy of a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vdu.cli.options import Overwrite, make_app

__all__ = ["app"]

app = make_app("Images from your own copy of a corpus.")


@app.command("prepare")
def data_prepare(
    corpus: Annotated[str, typer.Argument(help="mnist, fashion-mnist, cifar10 or tiny-imagenet-20")],
    data: Annotated[Path, typer.Option(help="folder with the corpus")],
    out: Annotated[Path, typer.Option(help="forget folder to write")],
    class_: Annotated[
        str | None, typer.Option("--class", help="name of the class; without it a folder for each class")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="how many of its first training images")] = 100,
    size: Annotated[int | None, typer.Option(min=1, help="side in pixels; default: the corpus' own")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write the first training images of a class as PNG files, for `vdu unlearn --forget`."""
    from vdu.corpora.forget_folder import prepare_forget_folder

    made = prepare_forget_folder(corpus, data, class_, out, count=count, size=size, overwrite=overwrite)
    typer.echo(f"{made['images']} images of {class_ or 'each class'}: {out}")
    if not made["redistributable"]:
        typer.echo(f"notice: the images of {corpus} may not be passed on; keep this folder to yourself")


@app.command("emoji")
def data_emoji(
    packages: Annotated[Path, typer.Option(help="folder with the unpacked packages; see docs/corpora.md")],
    out: Annotated[Path, typer.Option(help="corpus folder to write")],
    overwrite: Overwrite = False,
) -> None:
    """Render five open emoji styles with captions, for `vdu train emoji`."""
    from vdu.corpora.emoji import prepare_emoji

    typer.echo(f"{prepare_emoji(packages, out, overwrite)} pictures: {out}")
    typer.echo("notice: OpenMoji is share-alike (CC-BY-SA-4.0); pass its pictures on under that licence only")
