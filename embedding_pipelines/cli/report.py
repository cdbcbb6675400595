"""The command `report`: write the page on a pipeline, and open it where somebody can see it."""

import os
import sys
import webbrowser
from dataclasses import asdict
from typing import Annotated

import typer

from embedding_pipelines.cli.common import Name, Outcomes, Output, find_released
from embedding_pipelines.environment import home as home_folder

app = typer.Typer()


@app.command()
def report(
    name: Name,
    no_open: Annotated[
        bool, typer.Option("--no-open", help="Write the page, and do not open it.")
    ] = False,
) -> Outcomes:
    """Write one HTML page on a pipeline's quality and open it.

    Metrics, checks, charts over releases, and a map of the space. It calls no model.
    """
    from embedding_pipelines.cli.terminal import TerminalProgress, make_console
    from embedding_pipelines.report.page import write_report
    from embedding_pipelines.storage.warehouse import Warehouse

    name = find_released(name)
    with TerminalProgress(make_console(), name) as progress:
        page = write_report(Warehouse(home_folder()), name, progress)

    def show() -> None:
        print(page.path)
        if not no_open and _has_viewer():
            webbrowser.open(page.path.as_uri())

    yield Output([asdict(page)], show)


def _has_viewer() -> bool:
    """Whether there is somebody to see a browser: a terminal and, on Unix, a display."""
    has_display = (
        sys.platform in ("darwin", "win32")
        or os.environ.get("DISPLAY")
        or os.environ.get("WAYLAND_DISPLAY")
    )
    return sys.stdout.isatty() and bool(has_display)
