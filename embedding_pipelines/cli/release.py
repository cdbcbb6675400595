"""Commands that move the live pointer: `release` and `rollback`."""

from typing import Annotated

import typer

from embedding_pipelines.cli.common import (
    Name,
    Outcomes,
    Output,
    Problem,
    find_released,
    load_spec,
)
from embedding_pipelines.cli.run import run_one
from embedding_pipelines.environment import home as home_folder
from embedding_pipelines.errors import ConfigError

app = typer.Typer()


@app.command()
def release(
    name: Name,
    force: Annotated[
        bool, typer.Option("--force", help="Release it though checks of its quality failed.")
    ] = False,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; the release keeps it.")] = "",
) -> Outcomes:
    """Release what checks hold back, with a reason.

    `run` releases whatever passes. A broken table is never released.
    """
    if not force or not reason.strip():
        raise ConfigError(
            "release: `run` releases what passes its checks. To release what they hold back, give "
            "--force and --reason '…'; the release keeps the reason."
        )
    spec = load_spec(name)
    result, problem = run_one(spec, force_reason=reason.strip())
    yield Output([result])
    if problem:
        yield Problem(problem, spec.name)


@app.command()
def rollback(
    name: Name,
    to: Annotated[
        int | None,
        typer.Option(metavar="NUMBER", help="Which release (default: the one before)."),
    ] = None,
) -> Outcomes:
    """Make an earlier release live again."""
    from embedding_pipelines.cli.terminal import counted
    from embedding_pipelines.releases import rollback as go_back
    from embedding_pipelines.storage.warehouse import Warehouse

    name = find_released(name)
    before, now = go_back(Warehouse(home_folder()).pipeline(name), to)
    result = {"pipeline": name, "from": before.number, "live": now.number, "rows": now.rows}

    def show() -> None:
        print(f"{name}: live release {before.number} -> {now.number} ({counted(now.rows, 'row')})")
        print(f"To undo it: embedding-pipelines rollback {name} --to {before.number}")

    yield Output([result], show)
