"""The command line itself: the app that commands register with, and what they share."""

import sys
import traceback
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType

from tercet import __version__
from tercet.errors import LOST, Stopped, UserError
from tercet.files import FULL
from tercet.secret import masked

# Stages import torch and transformers, which takes seconds: they are loaded inside the commands,
# so that --help and a mistyped option answer at once.

app = typer.Typer(
    help="Train compact embedding models for retrieval, and know how good they are.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

WITHOUT_TERMINAL = 200  # columns of a pipe or a log: tables are as wide as they need to be

ConfigPath = Annotated[
    str, typer.Argument(help="A YAML file, or a recipe's name, such as finetune")
]
AllowChanged = Annotated[
    list[str] | None,
    typer.Option(
        help="Go on with an unfinished run although this differs: a key or a section of the "
        "config, data, or code; may be repeated."
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key.sub=value, for example train.epochs=2")
]


def main() -> None:
    """Run the command line: a user's mistake is one line and exit status 2, a stop 75 or 69."""
    sys.excepthook = _print_masked
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    try:
        status = app(args=arguments or ["--help"], prog_name="tercet", standalone_mode=False)
    except (UserError, Stopped) as error:
        if debug:
            raise
        _complain(str(error), error.status if isinstance(error, Stopped) else 2)
    except OSError as error:
        if debug or error.errno not in FULL:
            raise
        _complain(f"{error.filename or 'a disk'}: {error.strerror}; make room or choose another")
    except typer.TyperException as error:
        _complain(error.format_message())  # with the option's name
    except KeyboardInterrupt:
        sys.exit(130)
    else:
        if isinstance(status, int):  # what an Exit inside a command carried, 130 after Ctrl-C
            sys.exit(status)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print it.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """Train compact embedding models for retrieval, and know how good they are.

    Add --debug to any command to see the traceback of an error.
    """


def show(renderable: RenderableType) -> None:
    """Print a table; whole where there is no terminal whose width it has to fit.

    Nor does a terminal cut numbers off: what is too wide for it is wrapped by it.
    """
    console = Console()
    least = console.measure(renderable).minimum if console.is_terminal else WITHOUT_TERMINAL
    console.width = max(console.width, least)
    console.print(renderable, crop=False)


def _print_masked(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """An exception that nobody expected, as Python prints it but for keys and tokens."""
    sys.stderr.write(masked("".join(traceback.format_exception(kind, error, trace))))


def _complain(message: str, status: int = 2) -> None:
    from tercet.progress import is_main_process

    if is_main_process() or status == LOST:  # the main process may be the one that has gone
        print(f"error: {' '.join(masked(message).split())}", file=sys.stderr)
    sys.exit(status)
