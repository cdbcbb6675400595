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
    from embedding_pipelines import migrate as core
    from embedding_pipelines.bridge import build_bridge
    from embedding_pipelines.progress import Silent

    if (to is None) == (action == "start"):
        raise typer.BadParameter(
            f"`start` needs --to MODEL, and nothing else takes it. Write `embedding-pipelines "
            f"migrate {name} start --to MODEL`."
        )
    spec = load_spec(name)
    if action == "start":
        assert to is not None
        spec = core.start(home_folder(), spec.name, to)
        words = f"{spec.name}: the file names the new model. `embedding-pipelines run {spec.name}` "
        words += "fills its line beside the old one."
        show = partial(print_words, make_console(), words)
        yield Output([{"pipeline": spec.name, "started": True}], show)
        return
    if action in ("abort", "finish"):
        end = core.abort if action == "abort" else core.finish
        tables = end(home_folder(), spec.name, Silent())
        line = "new" if action == "abort" else "old"
        words = f"{spec.name}: the {line} line is gone ({', '.join(tables) or 'it had no table'})"
        yield Output([{"pipeline": spec.name, "dropped_tables": tables}], partial(say, words))
        return
    with (
        TerminalProgress(make_console(stderr=True), spec.name) as progress,
        open_run(spec, progress) as run,
    ):
        if action == "cutover":
            before, now = core.cut_over(run)
            result = {"pipeline": spec.name, "before": before.number, "live": now.number}
            lines = (
                f"{spec.name}: live release {before.number} -> {now.number}",
                f"To go back: embedding-pipelines rollback {spec.name} --to {before.number}",
            )
            yield Output([result], partial(say, *lines))
            return
        if action == "bridge":
            bridge = build_bridge(run)
            words = (
                f"{spec.name}: queries of the new model keep {bridge.retention:.1%} of recall@10 in the "
                f"old table ({bridge.retention_low:.1%} at least), over {bridge.queries:,} queries; "
                f"{bridge.kind}, fitted to {bridge.pairs:,} texts, {bridge.embedded:,} embedded"
            )
            how = f"To search by it: embedding-pipelines search {spec.name} '…' --bridge"
            show = partial(print_words, make_console(), f"{words}\n{how}")
            yield Output([asdict(bridge)], show)
            return
        status = core.status(run)
    yield Output([asdict(status)], lambda: _show(status))


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
