"""The command line: `app` holds the commands of every module of this folder.

A module that has a typer app `app` adds its commands: nothing else has to name them. All take
`--json`; `common` says what comes out.
"""

import importlib
import os
import pkgutil
from pathlib import Path
from typing import Annotated

import typer

from embedding_pipelines import cli
from embedding_pipelines.cli.common import with_json
from embedding_pipelines.environment import HOME_VARIABLE

WITHOUT_COMMANDS = {"main", "common", "terminal"}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _options(
    home: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help=f"Where pipelines/ and data/ are (default: ${HOME_VARIABLE}, else here).",
        ),
    ] = None,
) -> None:
    """Keep a released, checked, searchable vector store true to changing data.

    With --json, each command prints one object: {"command": name, "ok": true or false,
    "results": [objects], "errors": [{"error": sentence, "pipeline": name or null}]}.

    Exit code 0: all went well. 1: there are errors, on stderr or in the object. 2: the command is
    wrong. 130: Ctrl-C.
    """
    if home is not None:
        os.environ[HOME_VARIABLE] = str(home.expanduser().resolve())


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
    app(prog_name="embedding-pipelines")
