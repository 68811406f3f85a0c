"""What several commands share: arguments, quiet libraries, a model by zoo name, folder or hub id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vdu.backbone import Backbone

__all__ = ["Model", "Overwrite", "Precision", "Seed", "make_app", "open_model", "quiet"]

Model = Annotated[str, typer.Argument(help="pipeline folder, zoo name or hub id")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace the output if it exists")]
Seed = Annotated[int, typer.Option(help="random seed")]
Precision = Annotated[str, typer.Option(help="bf16 or fp32")]


def make_app(help_: str) -> typer.Typer:
    """A group of commands; errors are ours to print."""
    return typer.Typer(
        help=help_, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None
    )


def quiet() -> None:
    """No progress bars and advice of other libraries between our own lines."""
    from diffusers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def open_model(name: str) -> Backbone:
    """The backbone of a zoo name, pipeline folder or hub id."""
    quiet()
    from vdu.backbone import load_backbone
    from vdu.model_zoo import find_zoo_model

    zoo = find_zoo_model(name)
    return load_backbone(zoo.pipeline if zoo else name)
