"""The command `report`: write the page on a pipeline, and open it where there is somebody to look
at it."""

import os
import sys
import webbrowser
from dataclasses import asdict
from typing import Annotated

import typer

from embedding_pipelines.cli.common import AsJson, Name, emit, known_name
from embedding_pipelines.environment import home as home_folder


def add_to(app: typer.Typer) -> None:
    app.command()(report)


def report(
    name: Name,
    no_open: Annotated[
        bool, typer.Option("--no-open", help="Write the page, and do not open it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write one HTML page on a pipeline's quality and open it.

    Metrics, checks, charts over releases, and a map of the space. No model is called.
    """
    from embedding_pipelines.cli.terminal import TerminalProgress, make_console
    from embedding_pipelines.report.page import write_report
    from embedding_pipelines.storage.warehouse import Warehouse

    name = known_name(name)
    with TerminalProgress(make_console(quiet=as_json), name) as progress:
        written = write_report(Warehouse(home_folder()), name, progress)
    emit(asdict(written), as_json, lambda: print(written.path))
    if not no_open and not as_json and _somebody_is_looking():
        webbrowser.open(written.path.as_uri())


def _somebody_is_looking() -> bool:
    """Whether a browser would have a window: with a terminal and, where that can be told, a
    display."""
    has_display = (
        sys.platform in ("darwin", "win32")
        or os.environ.get("DISPLAY")
        or os.environ.get("WAYLAND_DISPLAY")
    )
    return sys.stdout.isatty() and bool(has_display)
