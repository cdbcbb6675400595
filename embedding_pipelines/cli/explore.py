"""Commands that read what is live: searches, labels, clusters, outliers, exports, the report."""

import os
import sys
import webbrowser
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from embedding_pipelines.cli import remote
from embedding_pipelines.cli.common import (
    AsOperator,
    For,
    Name,
    Outcomes,
    Output,
    ServerUrl,
    find_released,
    open_warehouse,
    options,
    principals_of,
)
from embedding_pipelines.cli.terminal import (
    TerminalProgress,
    counted,
    make_console,
    print_hits,
    print_table,
    say,
)
from embedding_pipelines.environment import home as home_folder

MOST_HITS = 10_000  # as in `search`, which loads NumPy
OTHERS = 2  # labels beside the one that won
DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY")  # variables of Unix

To = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write rows to this file too; it ends in .csv or .parquet."),
]

app = typer.Typer()


@app.command()
def search(
    name: Name,
    query: Annotated[
        str | None, typer.Argument(metavar="QUERY", help="What to look for, in plain words.")
    ] = None,
    like: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID",
            help="Instead of a query: what is like this document. Again for more: like all of them.",
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Instead of a query: what is like this image."),
    ] = None,
    k: Annotated[
        int, typer.Option("-k", min=1, max=MOST_HITS, metavar="NUMBER", help="How many hits.")
    ] = 10,
    filter: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITION",
            help="Only rows that pass, e.g. \"price < 9 AND added > '2024-01-31' AND 'new' IN "
            'tags". Texts, days and times stand in single quotes; = <> < > IN LIKE BETWEEN IS '
            "NULL, AND OR NOT. The last 30 days: added >= days_ago(30).",
        ),
    ] = None,
    mode: Annotated[
        Literal["vector", "text", "hybrid"] | None,
        typer.Option(
            help="By vectors, by words, or by both; else as the pipeline's search.mode says."
        ),
    ] = None,
    rerank: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="A cross-encoder that puts more hits in its order: a folder, or a model of the "
            "Hugging Face hub; else the pipeline's search.rerank. `none`: leave it out.",
        ),
    ] = None,
    cut: Annotated[
        bool, typer.Option("--cut", help="Search with the beginning of a query that is too long.")
    ] = False,
    bridge: Annotated[
        bool,
        typer.Option(
            "--bridge",
            help="With the model that the pipeline migrates to, see `migrate NAME bridge`.",
        ),
    ] = False,
    principals: For = None,
    as_operator: AsOperator = False,
    server: ServerUrl = None,
) -> Outcomes:
    """Search the live release of a pipeline."""
    if [query is None, not like, image is None].count(False) != 1:
        words = "give a QUERY, --like and the id of a document, or --image and a file."
        raise typer.BadParameter(words)
    if query is None:
        _refuse_without_query("--like" if like else "--image", mode, rerank, bridge)
    reader = principals_of(principals, as_operator)
    if server:
        _refuse_with_server(rerank, bridge, as_operator)
        has_order = False if rerank == "none" else None
        yield from remote.search(
            server, name, query, image, like, k, filter, mode, has_order, cut, principals
        )
        return
    name = find_released(name)
    from embedding_pipelines.search import Searcher
    from embedding_pipelines.search import search as run_search

    too_long: Literal["refuse", "cut"] = "cut" if cut else "refuse"
    rerank = "" if rerank == "none" else rerank
    if bridge and query is not None:
        with Searcher(home_folder(), name, bridged=True) as searcher:
            result = searcher.search(
                *(query, k, filter),
                too_long=too_long,
                mode=mode,
                rerank=rerank,
                principals=reader,
            )
    else:
        result = run_search(
            *(home_folder(), name, query, k, filter),
            too_long=too_long,
            mode=mode,
            image=image,
            like=like or None,
            rerank=rerank,
            principals=reader,
        )
    yield Output([result.model_dump(mode="json")], lambda: print_hits(make_console(), result))


def _refuse_without_query(option: str, mode: str | None, rerank: str | None, bridge: bool) -> None:
    """`option`: what stands in place of a query."""
    if mode not in (None, "vector"):
        raise typer.BadParameter(f"{option} compares vectors: leave --mode out.")
    if rerank is not None:
        raise typer.BadParameter("--rerank reads a query: give one.")
    if bridge:
        raise typer.BadParameter("--bridge maps a query: give one.")


def _refuse_with_server(rerank: str | None, bridge: bool, as_operator: bool) -> None:
    if bridge:
        raise typer.BadParameter("--bridge is for this folder: leave it out with --server.")
    if rerank not in (None, "none"):
        words = "--rerank with --server: a server has its own model; leave it out, or say none."
        raise typer.BadParameter(words)
    if as_operator:
        raise typer.BadParameter("--as-operator is for this folder: a server has keys.")


@app.command()
def classify(
    name: Name,
    texts: Annotated[list[str], typer.Argument(metavar="TEXT", help="One or more texts.")],
    label: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Metadata that labels (default: evaluation.label)."),
    ] = None,
    k: Annotated[
        int,
        typer.Option("-k", min=1, max=MOST_HITS, metavar="NUMBER", help="How many neighbours."),
    ] = 10,
    principals: For = None,
    as_operator: AsOperator = False,
) -> Outcomes:
    """Label texts as their nearest neighbours in the live table are."""
    from embedding_pipelines.explore.classify import classify as label_texts

    reader = principals_of(principals, as_operator)
    results = label_texts(home_folder(), find_released(name), texts, label, k, reader)

    def show() -> None:
        table = [
            {
                "label": result.label,
                "share": f"{result.share:.2f}",
                "others": [
                    f"{other} {share:.2f}"
                    for other, share in list(result.votes.items())[1 : OTHERS + 1]
                ],
                "text": result.text,
            }
            for result in results
        ]
        print_table(make_console(), table)

    yield Output([asdict(result) for result in results], show)


@app.command()
def clusters(
    name: Name,
    k: Annotated[
        int | None,
        typer.Option("-k", min=1, metavar="NUMBER", help="How many; else what suits, 20 at most."),
    ] = None,
    to: To = None,
    principals: For = None,
    as_operator: AsOperator = False,
) -> Outcomes:
    """Show what the live table is about: clusters and their keywords."""
    from embedding_pipelines.explore.clusters import find_clusters
    from embedding_pipelines.explore.table import check_file

    with options():
        if to:
            check_file(to)
    reader = principals_of(principals, as_operator)
    result = find_clusters(home_folder(), find_released(name), k, to, reader)
    value = vars(result) | {"clusters": [asdict(entry) for entry in result.clusters], "file": to}
    del value["assignments"]

    def show() -> None:
        table = [
            {"cluster": entry.number, "rows": entry.rows, "keywords": entry.keywords}
            for entry in result.clusters
        ]
        print_table(make_console(), table)
        fit = "" if result.silhouette is None else f", silhouette {result.silhouette:.3f}"
        count = counted(len(result.clusters), "cluster")
        rows = counted(result.rows, "row")
        say(f"{result.pipeline}, release {result.release}: {rows} in {count}{fit}")
        if to:
            say(f"rows are in {to}")

    yield Output([value], show)


@app.command()
def outliers(
    name: Name,
    number: Annotated[
        int | None,
        typer.Option("-n", min=1, metavar="NUMBER", help="How many rows; 20 if not said."),
    ] = None,
    share: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Or which share of all rows, e.g. 0.01.")
    ] = None,
    to: To = None,
    principals: For = None,
    as_operator: AsOperator = False,
) -> Outcomes:
    """Show the rows of the live table that are like no others.

    Scores are cosine distances to the 20th nearest neighbour.
    """
    from embedding_pipelines.explore.outliers import check_amount, find_outliers
    from embedding_pipelines.explore.table import check_file, write_rows

    with options():
        check_amount(number, share)
        if to:
            check_file(to)
    reader = principals_of(principals, as_operator)
    result = find_outliers(home_folder(), find_released(name), number, share, reader)
    if to:
        write_rows(to, result.table.schema, result.table.to_batches())
    rows = result.table.to_pylist()
    value = vars(result) | {"outliers": rows, "file": to}
    del value["table"]

    def show() -> None:
        table = [
            {"score": f"{row['score']:.3f}", "document": row["document_id"], "text": row["text"]}
            for row in rows
        ]
        print_table(make_console(), table)
        say(
            f"{result.pipeline}, release {result.release}: {len(rows):,} of {result.rows:,} rows; "
            f"half of all have a score below {result.typical:.3f}"
        )
        if to:
            say(f"rows are in {to}")

    yield Output([value], show)


@app.command()
def export(
    name: Name,
    to: Annotated[Literal["parquet", "npy", "torch", "atlas"], typer.Option(help="What to write.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where; else exports/ in the warehouse.")
    ] = None,
    vectors: Annotated[
        Literal["exact", "stored"],
        typer.Option(help="As the model gave them, or as the table keeps them."),
    ] = "exact",
    principals: For = None,
    as_operator: AsOperator = False,
) -> Outcomes:
    """Write the live table as files for training and viewers.

    parquet: one table. npy: a matrix and a table of the other columns. torch: a tensor with ids
    and that table. atlas: a table with places on a map, for embedding-atlas and Nomic Atlas.
    """
    from embedding_pipelines.explore.export import export as write

    name, reader = find_released(name), principals_of(principals, as_operator)
    with TerminalProgress(make_console(), name) as progress:
        about = write(home_folder(), name, to, out, vectors, progress, reader)

    def show() -> None:
        rows = f"{counted(about.rows, 'row')} of {about.dimensions:,} dimensions"
        say(f"{name}, release {about.release}: {rows}, {about.vectors} vectors")
        for file in about.files:
            say(str(Path(about.folder) / file))

    yield Output([asdict(about)], show)


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
    from embedding_pipelines.report.page import write_report

    name = find_released(name)
    with TerminalProgress(make_console(), name) as progress:
        page = write_report(open_warehouse(), name, progress)
    has_display = sys.platform in ("darwin", "win32") or any(map(os.environ.get, DISPLAYS))

    def show() -> None:
        say(str(page.path))
        if not no_open and has_display and sys.stdout.isatty():
            webbrowser.open(page.path.as_uri())

    yield Output([asdict(page)], show)
