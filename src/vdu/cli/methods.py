"""`vdu methods`: the list of methods, or one method's settings."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["methods_command"]


def methods_command(
    method: Annotated[str | None, typer.Argument(help="show this one's settings, for --set NAME=VALUE")] = None,
) -> None:
    """List the methods: name, what it needs (in brackets: may be given), what it does; or one method's settings."""
    from vdu.methods import METHODS, find_method

    if method is not None:
        for name, (default, said) in find_method(method).settings.described().items():
            typer.echo(f"{name:24s} {'not set' if default is None else default!s:14s} {said}".rstrip())
        return
    for known in METHODS.values():
        wants = [*known.settings.needs, *(f"[{name}]" for name in known.settings.takes)]
        typer.echo(f"{known.name:18s} {', '.join(wants):20s} {known.summary}")
