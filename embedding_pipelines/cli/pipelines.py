"""Commands that say what there is, and `example`, which writes two pipelines to start with."""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import typer

from embedding_pipelines import __version__
from embedding_pipelines.cli import remote
from embedding_pipelines.cli.common import (
    Files,
    Names,
    Outcomes,
    Output,
    Problem,
    ServerUrl,
    find_files,
    load_specs,
    no_pipelines,
    open_warehouse,
)
from embedding_pipelines.cli.terminal import (
    counted,
    fits,
    make_console,
    print_statistics,
    print_table,
    print_words,
    printable,
    say,
)
from embedding_pipelines.environment import home as home_folder
from embedding_pipelines.environment import instance_folder
from embedding_pipelines.home import pipelines_folder

LIST_COLUMNS = ("id", "pipeline", "status", "documents", "live_release", "released_at", "model")
NOTES = (
    "held_back",
    "last_error",
    "last_step",
    "forced",
    "rolled_back",
    "source",
    "endpoints",
)  # below the list
TITLES = {"live_release": "live", "released_at": "since (UTC)"}
OPTIONAL = (  # in a status: left out where there is nothing to tell
    "schedule",
    "rejected",
    "rejected_texts",
    "quarantined",
    "duplicates",
    "forgotten",
    "released_at",
    "live_rows",
    "live_model",
    "held_back",
    "last_error",
    "last_step",
    "forced",
    "rolled_back",
    "drift",
    "bucket",
    "output",
    "endpoints",
)

app = typer.Typer()


@app.command("list")
def list_pipelines(
    filter: Annotated[
        Literal["active", "building", "failed", "deployed", "archived", "all"],
        typer.Option(help="Only those that are so."),
    ] = "all",
    server: ServerUrl = None,
) -> Outcomes:
    """List the pipelines, broken ones included."""
    from embedding_pipelines.status import list_status

    if server:
        rows = remote.rows(server, filter)
    else:
        every = list_status(home_folder())
        rows = [row for row in every if filter == "all" or filter in row["states"]]
    if rows or filter != "all":
        nothing = f"No pipeline is {filter}."
    else:
        nothing = f"There are no pipelines on {server}." if server else no_pipelines()
    names = (*LIST_COLUMNS, "schedule", *NOTES, "problem", "states")
    results = [{name: row.get(name) for name in names} for row in rows]
    yield Output(results, partial(_show_list, rows, nothing))


def _show_list(rows: Sequence[Mapping[str, Any]], nothing: str) -> None:
    if not rows:
        say(nothing)
        return
    console = make_console()
    shown, notes = [_shown(row) for row in rows], tuple[str, ...](NOTES)
    if not fits(console, shown):  # a cut model may be any
        notes = ("model", *NOTES)
        shown = [{name: row[name] for name in row if name != "model"} for row in shown]
    print_table(console, shown)
    for row in rows:
        for name in notes:
            if row.get(name) and not (name == "source" and row.get("source_is_released")):
                title, value = name.replace("_", " "), row[name]
                words = printable(", ".join(value) if isinstance(value, list) else value)
                print_words(console, f"{row['pipeline']}: {title}: {words}", indent="  ")
    if any(row["status"] == "broken" for row in rows):
        print("Run `embedding-pipelines validate` to see the errors.", file=sys.stderr)


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the list, short enough for a terminal."""
    shown = {name: row.get(name) for name in LIST_COLUMNS}
    if released_at := shown["released_at"]:
        shown["released_at"] = released_at[:16].replace("T", " ")
    return {TITLES.get(name, name): value for name, value in shown.items()}


@app.command()
def status(names: Names = None, server: ServerUrl = None) -> Outcomes:
    """Show freshness, rows, releases, faults and the next tick."""
    if server:
        yield from remote.status(server, names)
        return
    from embedding_pipelines.dagster_files import NO_DAEMON, is_without_daemon
    from embedding_pipelines.status import pipeline_status

    specs, problems = load_specs(names)
    for number, spec in enumerate(specs):
        row = pipeline_status(spec, open_warehouse())
        if is_without_daemon(instance_folder(home_folder())):
            row["next_tick"] = NO_DAEMON
        else:
            from embedding_pipelines.orchestration.ticks import next_tick  # Dagster takes seconds

            row["next_tick"] = next_tick(spec, home_folder())
        absent = {name for name in OPTIONAL if not row[name]}
        absent |= {
            "pipeline",
            "override",
            "up_to_date",
            "source_is_released",
            *(f"{name}_table" for name in absent),
        }
        statistics = {name: value for name, value in row.items() if name not in absent}
        title = f"\n{spec.name}" if number else spec.name
        yield Output([row], partial(print_statistics, make_console(), title, statistics))
    yield from problems


@app.command()
def validate(names: Files = None) -> Outcomes:
    """Check pipeline files and what they name, and say every mistake.

    It looks at source files, columns, dimensions, models on this machine, keys and judgements. It
    opens no model, asks no service and imports no code of yours.
    """
    from embedding_pipelines.spec.load import read_draft, read_pipelines
    from embedding_pipelines.validate import check_file

    paths, problems = find_files(names)
    beside = {path.resolve(): error for path, error in read_pipelines(home_folder())[1].items()}
    for path in paths:
        draft = read_draft(path)
        lines, doubts = check_file(draft, open_warehouse())
        if not draft.problems and path.resolve() in beside:  # wrong beside other files alone
            lines.append(str(beside[path.resolve()]))
        if lines:
            problems.append(Problem("\n".join(lines), path.stem))
        else:
            result = {"pipeline": path.stem, "valid": True, "doubts": doubts}
            words = "\n".join([f"{path.stem}: valid", *doubts])
            yield Output([result], partial(print_words, make_console(), words))
    yield from problems


@app.command()
def example() -> Outcomes:
    """Write two example pipelines and their data.

    The data comes from this machine's own Python: its docstrings, and Unicode's characters.
    """
    from embedding_pipelines.examples import write_examples

    home = home_folder()
    files = write_examples(home)

    def show() -> None:
        rows = [file.rows for file in files if file.rows]
        count, written = counted(sum(rows), "row"), counted(len(rows), "file")
        say(
            f"{count} in {written} below {home / 'data'}",
            f"pipelines stdlib and unicode in {pipelines_folder(home)}",
            "Next: embedding-pipelines run",
        )

    results = [{"file": file.path, "rows": file.rows, "changed": file.changed} for file in files]
    yield Output(results, show)


@app.command()
def models() -> Outcomes:
    """List the models that have a short name or a price. Any other model works as well."""
    from embedding_pipelines.catalogue import catalogue
    from embedding_pipelines.providers.common.prices import PRICES_OF

    rows, day = catalogue(), PRICES_OF.isoformat()

    def show() -> None:
        table = [
            {
                "alias": row["alias"],
                "model": f"{row['provider']}:{row['model'] or ''}".rstrip(":"),
                "size": str(row["dimensions"] or "-"),
                "context": row["context"],
                "usd": row["usd_per_million"],
            }
            for row in rows
        ]
        console = make_console()
        print_table(console, table, cut=["model"])
        print_words(
            console,
            f"size in dimensions; context in tokens; usd per million tokens, as of {day}; batch prices "
            "with --json.",
        )
        for row in rows:
            if row["retires"]:
                say(f"{row['provider']}:{row['model']} retires on {row['retires']}.")

    yield Output([row | {"prices_are_of": day} for row in rows], show)


@app.command()
def version() -> Outcomes:
    """Print the version."""
    yield Output([{"version": __version__}], partial(say, __version__))
