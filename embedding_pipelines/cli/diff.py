"""The command `diff`: what changed between two releases, as text for people or as one JSON
document."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from embedding_pipelines.cli.common import AsJson, Name, complain, emit, known_name
from embedding_pipelines.environment import home as home_folder

if TYPE_CHECKING:
    from rich.console import Console

    from embedding_pipelines.diff.diff import Diff
    from embedding_pipelines.diff.documents import Documents
    from embedding_pipelines.diff.queries import Answers

SHOWN = 20  # of each kind; --json has more
SHOWN_CHARACTERS = 60  # of a query or of a text


def add_to(app: typer.Typer) -> None:
    app.command()(diff)


def diff(
    name: Name,
    before: Annotated[
        int | None, typer.Argument(metavar="[A]", help="A release; else the one before B.")
    ] = None,
    after: Annotated[
        int | None, typer.Argument(metavar="[B]", help="A release; else the live one.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what changed from one release to another.

    Documents, options, measures, and what searches answer. A model is called only for texts that it
    never embedded. With --json: the first 1,000 documents of each kind, and every query whose
    answers changed.
    """
    from embedding_pipelines.cli.terminal import make_console
    from embedding_pipelines.diff.diff import diff as compare
    from embedding_pipelines.storage.warehouse import Warehouse

    found = compare(Warehouse(home_folder()), known_name(name), before, after)
    value = asdict(found)
    del value["documents"]["sample"]  # says `neighbours`
    emit(value, as_json, lambda: _show(make_console(), found))
    if not as_json:
        complain(found.problems)


def _show(console: "Console", found: "Diff") -> None:
    from embedding_pipelines.cli.terminal import print_statistics

    old, new, documents = found.before, found.after, found.documents
    kinds = _kinds(documents)
    counts = ", ".join(
        f"{listed.count:,} {kind}" for kind, listed in kinds.items() if listed is not None
    )
    statistics: dict[str, Any] = {
        "released at": f"{old.released_at} -> {new.released_at}",
        "documents": f"{documents.before:,} -> {documents.after:,}: {counts}",
        "rows": f"{old.rows:,} -> {new.rows:,}",
    }
    if documents.mean_cosine is not None:
        statistics["vectors"] = (
            f"mean cosine {documents.mean_cosine:.4f} of {documents.compared_chunks:,} chunks of both"
        )
    if old.space != new.space:
        statistics["space"] = f"{old.space} -> {new.space}"
    if old.codec != new.codec:
        statistics["codec"] = f"{old.codec[:12]} -> {new.codec[:12]}"
    statistics |= {
        f"release {side.release} forced": side.forced for side in (old, new) if side.forced
    }
    print_statistics(
        console, f"{found.pipeline}: release {old.release} -> {new.release}", statistics
    )
    listed = {
        kind: _ids(entry.ids, entry.count)
        for kind, entry in kinds.items()
        if entry is not None and entry.count
    }
    if listed:
        print_statistics(console, "\ndocuments", listed)
    if found.options:
        values = {
            change.option: f"{_value(change.before)} -> {_value(change.after)}"
            for change in found.options
        }
        print_statistics(console, "\noptions", values)
    _show_metrics(console, found)
    if found.neighbours is not None:
        _show_answers(console, found.neighbours, "document", "nearest neighbours")
    if found.queries is not None:
        _show_answers(console, found.queries, "query", "first ten documents")


def _kinds(documents: "Documents") -> dict[str, Any]:
    return {kind: getattr(documents, kind) for kind in ("new", "gone", "changed", "moved")}


def _show_metrics(console: "Console", found: "Diff") -> None:
    from embedding_pipelines.cli.terminal import print_table

    rows = [
        {
            "measure": change.measure,
            f"release {found.before.release}": _figure(change.before),
            f"release {found.after.release}": _figure(change.after),
            "difference": _figure(change.difference, "+"),
            "": {True: "better", False: "worse", None: ""}[change.better],
        }
        for change in found.metrics
    ]
    if rows:
        console.print()
        print_table(console, rows)


def _show_answers(
    console: "Console", answers: "Answers", kind: Literal["document", "query"], places: str
) -> None:
    from embedding_pipelines.cli.terminal import print_table, printable

    changed, mean = len(answers.changed), answers.mean_overlap
    asked = {"document": "sampled documents", "query": "queries"}[kind]
    overlap = f", mean overlap {mean:.3f}" if mean is not None else ""
    refused = f"; {answers.without_vector:,} have no vector" if answers.without_vector else ""
    console.print(
        f"\n{changed:,} of {answers.asked:,} {asked} have other {places}{overlap}{refused}",
        soft_wrap=True,
    )
    calls = answers.embedded_before + answers.embedded_after
    if calls:
        console.print(
            f"{calls:,} texts were embedded for this; the others were in the cache.",
            soft_wrap=True,
        )
    rows = [
        {
            "overlap": f"{change.overlap:.2f}",
            **({"document": change.id} if kind == "document" else {}),
            "text": printable(change.text)[:SHOWN_CHARACTERS],
            "came": _ids(change.came, len(change.came)),
            "went": _ids(change.went, len(change.went)),
        }
        for change in answers.changed[:SHOWN]
    ]
    if rows:
        print_table(console, rows)


def _ids(ids: list[str], count: int) -> str:
    rest = count - len(ids[:SHOWN])
    return ", ".join(ids[:SHOWN]) + (f" and {rest:,} more" if rest else "")


def _value(value: Any) -> str:
    return (
        "-"
        if value is None
        else value
        if isinstance(value, str)
        else json.dumps(value, ensure_ascii=False)
    )


def _figure(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.4f}"
