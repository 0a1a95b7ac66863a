"""The command-line program `workbench`: its own commands, and those of the upper packages through entry points.

Results go to stdout, progress to stderr. A user error is one or two lines on stderr and exit code 2. This module knows
nothing of what the commands do and never names an upper package: these register in the entry-point group
`workbench.commands` and are loaded when they are used.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from importlib.metadata import version as metadata_version
from importlib.util import find_spec
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import Abort, TyperException
from typer.main import get_command, get_group

from workbench import commands
from workbench.errors import MissingExtraError, WorkbenchError, WorkbenchWarning

ENTRY_POINT_GROUP = "workbench.commands"
USER_MISTAKE, INTERRUPTED = 2, 130


def plugged_in() -> dict[str, EntryPoint]:
    """Entry points of the upper packages' commands by name, not loaded."""
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def missing_extra(package: str, point: EntryPoint) -> typer.Typer:
    """A command that accepts any arguments and says what to install."""
    extra = point.extras[0] if point.extras else point.name
    error = MissingExtraError(package, extra)
    app = typer.Typer(rich_markup_mode=None, add_completion=False)

    @app.command(
        point.name,
        help=f"Not available: {error}",
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    def fail() -> None:
        raise error

    return app


def load_command(point: EntryPoint) -> Any:
    """The command of an entry point, which is a Typer app or a function."""
    try:
        target = point.load()
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).partition(".")[0]
        if package == point.module.partition(".")[0] and find_spec(package):
            raise  # one of our own modules is missing: a bug, which no extra fixes
        return get_command(missing_extra(package, point))
    except MissingExtraError as error:
        return get_command(missing_extra(error.package, point))
    if isinstance(target, typer.Typer):
        command: Any = get_group(target)
    else:
        app = typer.Typer(rich_markup_mode=None, add_completion=False)
        app.command(point.name)(target)
        command = get_command(app)
    command.name = point.name
    return command


class Commands(TyperGroup):
    """Our own commands and the plugged-in ones; a plugged-in one is imported only when it is used or listed."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted({*self.commands, *plugged_in()})

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.commands and (point := plugged_in().get(cmd_name)):
            self.add_command(load_command(point), cmd_name)
        return self.commands.get(cmd_name)


app = typer.Typer(
    cls=Commands,
    name="workbench",
    help="Load a Llama, look inside it, and measure what it can do.",
    epilog="Example: workbench generate demo 'Question: ' --max-new-tokens 20",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
)
commands.register(app)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"workbench {metadata_version('llama-workbench')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Load a Llama, look inside it, and measure what it can do."""


def describe(error: TyperException) -> str:
    """A usage error in at most two lines: what is wrong, and the help command."""
    lines = error.format_message().strip()
    ctx = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        return lines
    if ctx is None:
        return f"workbench: {lines}"
    first = " ".join(lines.split())
    return f"{ctx.command_path}: {first}\nTry '{ctx.command_path} --help'."


def show_warning(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
    """Our own warnings in one line on stderr; other packages' as Python shows them."""
    if issubclass(category, WorkbenchWarning):
        print(f"workbench: warning: {message}", file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, *place[:2]), end="", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code: 0, 1 for a command's own failure, 2 for a user error."""
    for stream in (sys.stdout, sys.stderr):
        # Generated text may hold characters that the terminal's encoding does not have: they are escaped.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", WorkbenchWarning)
            warnings.showwarning = show_warning
            result = app(args=argv, prog_name="workbench", standalone_mode=False)
    except TyperException as error:
        print(describe(error), file=sys.stderr)
        return USER_MISTAKE
    except WorkbenchError as error:
        print(f"workbench: {error}", file=sys.stderr)
        return USER_MISTAKE
    except (Abort, KeyboardInterrupt):
        print("workbench: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) closed the pipe; redirect stdout so that the interpreter can flush it without an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None:
            raise
        print(f"workbench: {error.filename}: {error.strerror}", file=sys.stderr)
        return USER_MISTAKE
    return result if isinstance(result, int) else 0
