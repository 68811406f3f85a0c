"""The command line: parses, calls the library, prints. Heavy imports happen inside the commands."""

from __future__ import annotations

import signal
import sys
from typing import Annotated, Any, NoReturn

import typer

from vdu import __version__
from vdu.cli import bench, data, delta, evaluation, methods, posterior, relearning, sampling, unlearning, words, zoo
from vdu.cli.options import make_app
from vdu.errors import VduError, in_one_line, out_of_memory

__all__ = ["app", "main"]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vdu {__version__}")
        raise typer.Exit


app = make_app("Make a diffusion model forget a folder of images, with evidence.")
app.command(name="unlearn")(unlearning.unlearn_command)
app.command(name="methods")(methods.methods_command)
app.command()(evaluation.evaluate)
app.command(name="relearn")(relearning.relearn_command)
app.command(name="words")(words.words_command)
app.command()(sampling.train)
app.command()(sampling.sample)
app.command(name="apply")(delta.apply_command)
app.command(name="revert")(delta.revert_command)
app.add_typer(data.app, name="data")
app.add_typer(posterior.app, name="posterior")
app.add_typer(bench.app, name="bench")
app.add_typer(zoo.app, name="zoo")


Version = Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print it")]


@app.callback()
def _root(version: Version = False) -> None:
    pass


def _interrupted(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def main() -> None:
    """Entry point: bad input, and a file that cannot be read or written, is one line on stderr and exit code 2.

    What a scheduler ends a run with (SIGTERM) is taken as Ctrl-C is: nothing is left half written, exit code 130.
    """
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        code = app(standalone_mode=False)
    except VduError as error:
        sys.stderr.write(f"vdu: {error}\n")
        sys.exit(2)
    except OSError as error:
        sys.stderr.write(f"vdu: {error.strerror or error}: {error.filename or 'no file named'}\n")
        sys.exit(2)
    except Exception as error:
        if out_of_memory(error):
            advice = "ask for less at once (batch_size, own_samples, samples; `parameters`, `gradient_checkpointing`)"
            sys.stderr.write(f"vdu: not enough memory: {advice}: {in_one_line(error)}\n")
            sys.exit(2)
        _refuse_usage(error)
    sys.exit(code if isinstance(code, int) else 0)


def _refuse_usage(error: Any) -> NoReturn:
    """What the parser raises, which is click's under a name that depends on typer's version; all else is raised."""
    if not hasattr(error, "format_message"):
        raise error
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        sys.stderr.write(f"vdu: {' '.join(error.format_message().split())} (--help says what there is)\n")
    sys.exit(2)
