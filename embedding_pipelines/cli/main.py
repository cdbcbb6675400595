"""The command line: `app` holds the commands of every module of this folder.

A module that has a typer app `app` adds its commands: nothing else has to name them. All take
`--json`; `common` says what comes out.
"""

import gc
import importlib
import pkgutil
import sys
from typing import Annotated

import typer
from typer.exceptions import TyperException

from embedding_pipelines import __version__, cli
from embedding_pipelines.cli.common import HomeFolder, Problem, set_home, with_json
from embedding_pipelines.cli.streams import prepare_streams
from embedding_pipelines.cli.terminal import printed_warnings
from embedding_pipelines.cli.usage import PROGRAM, describe

WITHOUT_COMMANDS = {"main", "common", "remote", "streams", "terminal", "usage"}

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    home: HomeFolder = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Keep a released, checked, searchable vector store true to changing data.

    With --json, each command prints one object: {"command": name, "ok": true or false,
    "results": [objects], "errors": [{"error": sentence, "pipeline": name or null}]}.

    Exit code 0: all went well. 1: there are errors, on stderr or in the object. 2: the command is
    wrong. 3: a run has stopped by itself, as `--until` or `--for` say. 130: Ctrl-C,
    or no to a question.
    """
    set_home(home)


def _add_commands() -> None:
    for module in pkgutil.iter_modules(cli.__path__):
        if module.name not in WITHOUT_COMMANDS:
            part = importlib.import_module(f"{cli.__name__}.{module.name}")
            for command in part.app.registered_commands:
                assert command.callback is not None
                command.name = command.name or command.callback.__name__
                command.callback = with_json(command.callback)
                app.registered_commands.append(command)
    app.registered_commands.sort(key=lambda command: str(command.name))


_add_commands()


def main() -> None:
    """The console script."""
    # Imports and Dagster make some hundred thousand objects that stay; looking through them again
    # and again for cycles took a sixth of a small change. The default is 700.
    gc.set_threshold(100_000)
    descriptors = prepare_streams()
    try:
        with printed_warnings():
            raise SystemExit(app(prog_name=PROGRAM, standalone_mode=False))
    except TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message(), file=sys.stderr)
        else:
            Problem(describe(error)).show()
        raise SystemExit(error.exit_code) from None
    finally:
        sys.stdout.flush()
        problems = [descriptor.problem for descriptor in descriptors if descriptor.problem]
        if problems:
            print(f"error: the output could not be written: {problems[0]}.", file=sys.stderr)
            raise SystemExit(1)
