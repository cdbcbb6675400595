"""The command `search`: the nearest documents of a live release."""

from typing import Annotated

import typer

from embedding_pipelines.cli.common import Name, Outcomes, Output, find_released
from embedding_pipelines.environment import home as home_folder

app = typer.Typer()


@app.command()
def search(
    name: Name,
    query: Annotated[
        str, typer.Argument(metavar="QUERY", help="What to look for, in plain words.")
    ],
    k: Annotated[int, typer.Option("-k", metavar="NUMBER", help="How many hits.")] = 10,
    filter: Annotated[
        str | None,
        typer.Option(metavar="SQL", help="A condition on metadata, e.g. \"module = 'shutil'\"."),
    ] = None,
) -> Outcomes:
    """Search the live release of a pipeline."""
    from embedding_pipelines.cli.terminal import make_console, print_hits
    from embedding_pipelines.search import search as run_search

    result = run_search(home_folder(), find_released(name), query, k, filter)
    yield Output([result.model_dump(mode="json")], lambda: print_hits(make_console(), result))
