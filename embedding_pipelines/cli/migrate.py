"""The command `migrate`: a pipeline goes over to another model, and can go back."""

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from embedding_pipelines.cli.common import Name, Outcomes, Output, load_spec, open_run
from embedding_pipelines.cli.terminal import (
    TerminalProgress,
    make_console,
    print_table,
    print_words,
    say,
)
from embedding_pipelines.environment import home as home_folder

if TYPE_CHECKING:
    from embedding_pipelines.migrate import MigrationStatus
    from embedding_pipelines.run import Run

app = typer.Typer()


@app.command()
def migrate(
    name: Name,
    action: Annotated[
        Literal["status", "start", "bridge", "cutover", "abort", "finish"],
        typer.Argument(help="What to do."),
    ] = "status",
    to: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="With start: as in a pipeline file, such as hf:ORG/NAME or '{provider: hf, …}'.",
        ),
    ] = None,
) -> Outcomes:
    """Change a pipeline's model without an outage.

    While it lasts, every run keeps up two lines: that of the old model, which searches read, and
    the new one, which fills.

    status: where it stands; compares both lines on the same queries.

    start: write the new model into the pipeline file, and the one before beside it.

    bridge: let queries of the new model search the old table.

    cutover: have searches read the new line, if its checks pass. For `migration.keep_old_days` more
    the old one is kept up, so that `rollback` can go back to it.

    finish: drop the old line.

    abort: drop the new line, and name the old model in the file again.
    """
    if (to is None) == (action == "start"):
        raise typer.BadParameter(
            f"`start` needs --to MODEL, and nothing else takes it. Write `embedding-pipelines "
            f"migrate {name} start --to MODEL`."
        )
    spec = load_spec(name)
    if to is not None:
        yield _start(spec.name, to)
    elif action == "abort" or action == "finish":
        yield _end(spec.name, action)
    else:
        does = {"cutover": _cut_over, "bridge": _build_bridge}.get(action, _status)
        with (
            TerminalProgress(make_console(stderr=True), spec.name) as progress,
            open_run(spec, progress) as run,
        ):
            output = does(run)
        yield output


def _start(name: str, to: str) -> Output:
    from embedding_pipelines.migrate import start

    name = start(home_folder(), name, to).name
    words = f"{name}: the file names the new model. `embedding-pipelines run {name}` "
    words += "fills its line beside the old one."
    show = partial(print_words, make_console(), words)
    return Output([{"pipeline": name, "started": True}], show)


def _end(name: str, action: Literal["abort", "finish"]) -> Output:
    from embedding_pipelines.migrate import abort, finish
    from embedding_pipelines.progress import Silent

    end, line = (abort, "new") if action == "abort" else (finish, "old")
    tables = end(home_folder(), name, Silent())
    words = f"{name}: the {line} line is gone ({', '.join(tables) or 'it had no table'})"
    return Output([{"pipeline": name, "dropped_tables": tables}], partial(say, words))


def _cut_over(run: "Run") -> Output:
    from embedding_pipelines.migrate import cut_over

    name = run.spec.name
    before, now = cut_over(run)
    lines = (
        f"{name}: live release {before.number} -> {now.number}",
        f"To go back: embedding-pipelines rollback {name} --to {before.number}",
    )
    result = {"pipeline": name, "before": before.number, "live": now.number}
    return Output([result], partial(say, *lines))


def _build_bridge(run: "Run") -> Output:
    from embedding_pipelines.bridge import build_bridge

    name, bridge = run.spec.name, build_bridge(run)
    words = (
        f"{name}: queries of the new model keep {bridge.retention:.1%} of recall@10 in the "
        f"old table ({bridge.retention_low:.1%} at least), over {bridge.queries:,} queries; "
        f"{bridge.kind}, fitted to {bridge.pairs:,} texts, {bridge.embedded:,} embedded"
    )
    how = f"To search by it: embedding-pipelines search {name} '…' --bridge"
    show = partial(print_words, make_console(), f"{words}\n{how}")
    return Output([asdict(bridge)], show)


def _status(run: "Run") -> Output:
    from embedding_pipelines.migrate import status

    state = status(run)
    return Output([asdict(state)], lambda: _show(state))


def _show(status: "MigrationStatus") -> None:
    console = make_console()
    print_words(
        console, f"{status.pipeline}: {status.old_model} -> {status.new_model}, {status.phase}"
    )
    lines = [
        {"line": "old", "release": status.old_release},
        {"line": "new", "release": status.new_release},
    ]
    for row in lines:
        row["live"] = "live" if row["release"] == status.live_release else ""
    print_table(console, lines)
    parts = f"{status.embedded_partitions} of {status.partitions} partitions are embedded"
    print_words(console, f"new line: {parts}")
    rows = [
        {
            "metric": change.metric,
            "old": f"{change.old:.4f}",
            "new": f"{change.new:.4f}",
            "new - old, 95%": f"{change.low:+.4f} to {change.high:+.4f}",
            "queries": change.queries,
        }
        for change in status.changes
    ]
    if rows:
        print_table(console, rows)
    if status.kept_until:
        print_words(console, f"The old line is kept up until {status.kept_until}.")
    if status.next_step:
        print_words(console, status.next_step[:1].upper() + status.next_step[1:])
