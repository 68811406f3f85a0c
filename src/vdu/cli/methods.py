"""`vdu methods`: which methods there are and what each must be given."""

from __future__ import annotations

import typer

__all__ = ["methods_command"]


def methods_command() -> None:
    """List the methods: name, what it needs (in brackets: may be given), what it does."""
    from vdu.methods import METHODS

    for method in METHODS.values():
        wants = [*method.settings.needs, *(f"[{name}]" for name in method.settings.takes)]
        typer.echo(f"{method.name:18s} {', '.join(wants):20s} {method.summary}")
