"""The command `diff`: what changed between two releases."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedding_pipelines.cli.common import Name, Outcomes, Output, find_released, open_warehouse
from embedding_pipelines.cli.terminal import (
    counted,
    figure,
    make_console,
    print_statistics,
    print_table,
    print_words,
)

if TYPE_CHECKING:
    from rich.console import Console

    from embedding_pipelines.diff.diff import Diff, MetricChange
    from embedding_pipelines.diff.documents import DocumentChanges
    from embedding_pipelines.diff.queries import ResultChanges

SHOWN = 20  # of each kind; --json has more
KINDS = {  # of documents, and how they are called
    "new": "new",
    "gone": "gone",
    "changed": "changed",
    "metadata": "with other metadata",
    "moved": "moved",
}
RATINGS = {True: "better", False: "worse", None: ""}
SLIGHT = "within chance"

app = typer.Typer()


@app.command()
def diff(
    name: Name,
    before: Annotated[
        int | None, typer.Argument(metavar="[A]", help="A release (default: the one before B).")
    ] = None,
    after: Annotated[
        int | None, typer.Argument(metavar="[B]", help="A release (default: the live one).")
    ] = None,
) -> Outcomes:
    """Say what changed from one release to another.

    Documents, options, metrics, and what searches return. It calls a model only for texts that are
    not in the embedding cache. With --json: the first 1,000 documents of each kind, and every query
    with other results.
    """
    from embedding_pipelines.diff.diff import diff as compare

    comparison = compare(open_warehouse(), find_released(name), before, after)
    result = asdict(comparison)
    del result["documents"]["sample"]  # `neighbours` says it
    yield Output([result], lambda: _show(make_console(), comparison))


def _show(console: "Console", diff: "Diff") -> None:
    old, new, documents = diff.before, diff.after, diff.documents
    kinds = {kind: listed for kind in KINDS if (listed := getattr(documents, kind)) is not None}
    counts = ", ".join(f"{listed.count:,} {KINDS[kind]}" for kind, listed in kinds.items())
    statistics = {
        "released at": f"{old.released_at} -> {new.released_at}",
        "documents": f"{documents.before:,} -> {documents.after:,}: {counts}",
        "rows": f"{old.rows:,} -> {new.rows:,}",
    }
    if documents.mean_cosine is not None:
        cosine, chunks = documents.mean_cosine, documents.compared_chunks
        statistics["vectors"] = f"mean cosine {cosine:.4f} over {chunks:,} chunks in both"
    if old.space != new.space:
        statistics["space"] = f"{old.space} -> {new.space}"
    if old.codec != new.codec:
        statistics["codec"] = f"{old.codec[:12]} -> {new.codec[:12]}"
    for side in (old, new):
        if side.forced:
            statistics[f"release {side.release} forced"] = side.forced
    title = f"{diff.pipeline}: release {old.release} -> {new.release}"
    print_statistics(console, title, statistics)
    ids = {kind: _ids(listed.ids, listed.count) for kind, listed in kinds.items() if listed.count}
    if ids:
        print_statistics(console, "\ndocuments", ids)
    options = {
        change.option: f"{_value(change.before)} -> {_value(change.after)}"
        for change in diff.options
    }
    if documents.metadata_columns:
        _show_metadata(console, documents)
    if options:
        print_statistics(console, "\noptions", options)
    metrics = [change for change in diff.metrics if change.metric != "documents"]  # it stands above
    rows = [
        {
            "metric": change.metric,
            f"release {old.release}": figure(change.before, ".4f"),
            f"release {new.release}": figure(change.after, ".4f"),
            "difference": figure(change.difference or None, "+.4f"),
            "": SLIGHT if _is_slight(change) else RATINGS[change.better],
        }
        for change in metrics
    ]
    if rows:
        console.print()
        slight = [number for number, change in enumerate(metrics) if _is_slight(change)]
        print_table(console, rows, faint=slight)
    if diff.neighbours is not None:
        _show_answers(console, diff.neighbours, "sampled documents", "nearest neighbours", ids=True)
    if diff.queries is not None:
        _show_answers(console, diff.queries, "queries", "first ten documents")
    for problem in diff.problems:
        print_words(console, f"\n{problem}", "yellow")


def _show_metadata(console: "Console", documents: "DocumentChanges") -> None:
    """How many documents have another value in each column, and some of them."""
    counts = {
        column: f"{counted(count, 'document')} with another value"
        for column, count in documents.metadata_columns.items()
    }
    print_statistics(console, "\nmetadata", counts)
    console.print()
    rows = [
        {
            "document": change.document_id,
            "column": change.column,
            "before": _value(change.before),
            "after": _value(change.after),
        }
        for change in documents.metadata_examples
    ]
    print_table(console, rows, cut=("before", "after"))


def _is_slight(change: "MetricChange") -> bool:
    return bool(change.difference) and change.beyond_chance is False


def _show_answers(
    console: "Console", answers: "ResultChanges", questions: str, places: str, ids: bool = False
) -> None:
    line = f"\n{len(answers.changed):,} of {answers.count:,} {questions} have other {places}"
    if answers.mean_overlap is not None:
        line += f", mean overlap {answers.mean_overlap:.3f}"
    if answers.without_vector:
        line += f"; {answers.without_vector:,} have no vector"
    calls = answers.embedded_before + answers.embedded_after
    if calls:
        line += f"\nEmbedded for this: {counted(calls, 'text')}; the others were in the cache."
    print_words(console, line)
    rows = [
        {
            "overlap": f"{change.overlap:.2f}",
            **({"document": change.id} if ids else {}),
            "text": change.text,
            "added": _ids(change.added, len(change.added)),
            "removed": _ids(change.removed, len(change.removed)),
        }
        for change in answers.changed[:SHOWN]
    ]
    if rows:
        print_table(console, rows, cut=("text", "added", "removed"))


def _ids(ids: list[str], count: int) -> str:
    rest = count - len(ids[:SHOWN])
    return ", ".join(ids[:SHOWN]) + (f" and {rest:,} more" if rest else "")


def _value(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
