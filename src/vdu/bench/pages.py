"""Tables of a Markdown page, each made by the command that stands before it, so that no figure is copied by hand.

<!-- vdu bench show SUITE … -->
| what the command prints |
"""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import NoReturn

from vdu.bench.rows import is_of_steps
from vdu.bench.tables import named_columns, render
from vdu.errors import VduError
from vdu.output import replacing

__all__ = ["refresh", "refreshed"]

TABLE = re.compile(r"^<!-- vdu bench show (?P<options>.*?) -->(?:\n|\Z)(?:\|.*(?:\n|\Z))*", re.MULTILINE)


class _Options(argparse.ArgumentParser):
    """Those of `vdu bench show` that choose what a table holds."""

    def __init__(self) -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        self.add_argument("suite")
        for field in ("method", "target", "seed"):
            self.add_argument(f"--{field}", action="append", default=[])
        self.add_argument("--columns", default="")
        self.add_argument("--by", default="")

    def error(self, message: str) -> NoReturn:
        raise VduError(message)


def _table(options: str, results: Path) -> str:
    given = _Options().parse_args(shlex.split(options))
    columns = named_columns(given.columns)
    if not (columns or given.by or is_of_steps(given.suite)):
        raise VduError("give --columns or --by, which leave one table")
    chosen = {field: getattr(given, field) for field in ("method", "target", "seed")}
    return render(given.suite, results, "table", chosen, columns, given.by)


def refreshed(page: str, results: Path) -> str:
    """``page`` with every table that a comment names the command of made anew.

    Raises `VduError`, with the command, where that cannot be done, and for a page without such a table.
    """

    def table(found: re.Match[str]) -> str:
        try:
            return f"<!-- vdu bench show {found['options']} -->\n{_table(found['options'], results)}\n"
        except (VduError, ValueError) as error:  # of a quotation mark without another
            raise VduError(f"vdu bench show {found['options']}: {error}") from error

    if not TABLE.search(page):
        raise VduError("no line <!-- vdu bench show SUITE --columns … --> says where a table is to stand")
    return TABLE.sub(table, page)


def refresh(path: Path, results: Path) -> bool:
    """Make the tables of the page ``path`` anew; whether that changed any. Raises `VduError` as `refreshed`."""
    try:
        page = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise VduError(f"{path} cannot be read: {error}") from error
    try:
        made = refreshed(page, results)
    except VduError as error:
        raise VduError(f"{path}: {error}") from error
    if made != page:
        with replacing(path) as beside:
            beside.write_text(made, encoding="utf-8")
    return made != page
