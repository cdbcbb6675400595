"""Commands that move the live pointer: `release` and `rollback`."""

from typing import Annotated

import typer

from embedding_pipelines.cli.common import AsJson, Name, emit, known_name, run_one, valid_specs
from embedding_pipelines.environment import home as home_folder
from embedding_pipelines.errors import ConfigError, ReleaseError


def add_to(app: typer.Typer) -> None:
    app.command()(release)
    app.command()(rollback)


def release(
    name: Name,
    force: Annotated[
        bool, typer.Option("--force", help="Release it though checks of its quality failed.")
    ] = False,
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="Why; it is kept with the release.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Release what checks have held back, with a reason.

    `run` releases whatever passes. A table that is broken is never released.
    """
    if not force or not reason.strip():
        raise ConfigError(
            "release: what passes its checks is released by `run`. To release what they hold back, say --force and "
            "--reason '…', which is kept with the release."
        )
    (spec,) = valid_specs([name])
    result = run_one(spec, quiet=as_json, force_reason=reason.strip())
    if result["error"]:
        raise ReleaseError(result["error"])
    emit(result, as_json, lambda: None)


def rollback(
    name: Name,
    to: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="Which release; else the one before.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make an earlier release live again."""
    from embedding_pipelines.cli.terminal import counted
    from embedding_pipelines.releases import rollback as go_back
    from embedding_pipelines.storage.warehouse import Warehouse

    name = known_name(name)
    before, now = go_back(Warehouse(home_folder()).pipeline(name), to)
    value = {"pipeline": name, "from": before.number, "live": now.number, "rows": now.rows}

    def show() -> None:
        print(f"{name}: live release {before.number} -> {now.number} ({counted(now.rows, 'row')})")
        print(f"Back again: embedding-pipelines rollback {name} --to {before.number}")

    emit(value, as_json, show)
