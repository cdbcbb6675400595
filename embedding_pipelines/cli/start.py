"""Commands to start with: `example`, `models` and `version`."""

from collections.abc import Mapping
from typing import Any

import typer

from embedding_pipelines import __version__
from embedding_pipelines.cli.common import Outcomes, Output
from embedding_pipelines.environment import home as home_folder
from embedding_pipelines.home import pipelines_folder

app = typer.Typer()


@app.command()
def example() -> Outcomes:
    """Write two example pipelines and their data.

    The data comes from this machine's own Python: its docstrings, and Unicode's characters.
    """
    from embedding_pipelines.cli.terminal import counted
    from embedding_pipelines.examples import write_examples

    home = home_folder()
    files = write_examples(home)
    results = [
        {"file": str(file.path), "rows": file.rows, "changed": file.changed} for file in files
    ]

    def show() -> None:
        rows = [file.rows for file in files if file.rows]
        print(f"{counted(sum(rows), 'row')} in {counted(len(rows), 'file')} below {home / 'data'}")
        print(f"pipelines stdlib and unicode in {pipelines_folder(home)}")
        print("Next: embedding-pipelines run")

    yield Output(results, show)


@app.command()
def models() -> Outcomes:
    """List the models that have a short name or a price. Any other model works as well."""
    from embedding_pipelines.catalogue import PRICES_ARE_OF, catalogue
    from embedding_pipelines.cli.terminal import make_console, print_table

    rows, day = catalogue(), PRICES_ARE_OF.isoformat()

    def show() -> None:
        print_table(make_console(), [_line(row) for row in rows])
        print(f"context in tokens; usd and batch per million tokens, as of {day}.")
        for row in rows:
            if row["retires"]:
                print(f"{row['provider']}:{row['model']} retires on {row['retires']}.")

    yield Output([row | {"prices_are_of": day} for row in rows], show)


def _line(row: Mapping[str, Any]) -> dict[str, Any]:
    """A model as people see it, called as in a pipeline file."""
    return {
        "alias": row["alias"],
        "model": f"{row['provider']}:{row['model'] or ''}".rstrip(":"),
        "dimensions": row["dimensions"],
        "context": row["context"],
        "usd": row["usd_per_million"],
        "batch": row["usd_batch"],
    }


@app.command()
def version() -> Outcomes:
    """Print the version."""
    yield Output([{"version": __version__}], lambda: print(__version__))
