"""Commands that look into a live table: `clusters`, `outliers` and `export`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from embedding_pipelines.cli.common import Name, Outcomes, Output, find_released
from embedding_pipelines.environment import home as home_folder

To = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write rows to this file too; it ends in .csv or .parquet."),
]


app = typer.Typer()


@app.command()
def clusters(
    name: Name,
    k: Annotated[
        int | None,
        typer.Option("-k", metavar="NUMBER", help="How many; else what suits, 20 at most."),
    ] = None,
    to: To = None,
) -> Outcomes:
    """Show what the live table is about: clusters and their keywords."""
    from embedding_pipelines.cli.terminal import counted, make_console, print_table
    from embedding_pipelines.explore.clusters import find_clusters

    result = find_clusters(home_folder(), find_released(name), k, to)
    value = {key: entry for key, entry in vars(result).items() if key != "assignments"}
    value |= {
        "clusters": [asdict(entry) for entry in result.clusters],
        "file": str(to) if to else None,
    }

    def show() -> None:
        print_table(
            make_console(),
            [
                {
                    "cluster": entry.number,
                    "rows": entry.rows,
                    "keywords": entry.keywords,
                }
                for entry in result.clusters
            ],
        )
        fit = "" if result.silhouette is None else f", silhouette {result.silhouette:.3f}"
        count = counted(len(result.clusters), "cluster")
        rows = counted(result.rows, "row")
        print(f"{result.pipeline}, release {result.release}: {rows} in {count}{fit}")
        _print_file(to)

    yield Output([value], show)


@app.command()
def outliers(
    name: Name,
    number: Annotated[
        int | None, typer.Option("-n", metavar="NUMBER", help="How many rows; 20 if not said.")
    ] = None,
    share: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Or which share of all rows, e.g. 0.01.")
    ] = None,
    to: To = None,
) -> Outcomes:
    """Show the rows of the live table that are like no others.

    Scores are cosine distances to the 20th nearest neighbour.
    """
    from embedding_pipelines.cli.terminal import make_console, print_table
    from embedding_pipelines.explore.outliers import find_outliers
    from embedding_pipelines.explore.table import check_file, write_rows

    if to is not None:
        check_file(to)
    result = find_outliers(home_folder(), find_released(name), number, share)
    if to is not None:
        write_rows(to, result.table.schema, result.table.to_batches())
    rows = result.table.to_pylist()
    value: dict[str, Any] = {key: entry for key, entry in vars(result).items() if key != "table"}
    value |= {"outliers": rows, "file": str(to) if to else None}

    def show() -> None:
        print_table(
            make_console(),
            [
                {
                    "score": f"{row['score']:.3f}",
                    "document": row["document_id"],
                    "text": row["text"],
                }
                for row in rows
            ],
        )
        print(
            f"{result.pipeline}, release {result.release}: {len(rows):,} of {result.rows:,} rows; "
            f"half of all have a score below {result.typical:.3f}"
        )
        _print_file(to)

    yield Output([value], show)


@app.command()
def export(
    name: Name,
    to: Annotated[Literal["parquet", "npy", "torch", "atlas"], typer.Option(help="What to write.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where; else exports/ in the warehouse."),
    ] = None,
    vectors: Annotated[
        Literal["exact", "stored"],
        typer.Option(help="As the model gave them, or as the table keeps them."),
    ] = "exact",
) -> Outcomes:
    """Write the live table as files for training and viewers.

    parquet: one table. npy: a matrix and a table of the other columns. torch: a tensor with ids
    and that table. atlas: a table with places on a map, for embedding-atlas and Nomic Atlas.
    """
    from embedding_pipelines.cli.terminal import TerminalProgress, counted, make_console
    from embedding_pipelines.explore.export import export as write

    name = find_released(name)
    with TerminalProgress(make_console(), name) as progress:
        about = write(home_folder(), name, to, out, vectors, progress)

    def show() -> None:
        rows = f"{counted(about.rows, 'row')} of {about.dimensions:,} dimensions"
        print(f"{name}, release {about.release}: {rows}, {about.vectors} vectors")
        for file in about.files:
            print(Path(about.folder) / file)

    yield Output([asdict(about)], show)


def _print_file(path: Path | None) -> None:
    if path is not None:
        print(f"rows are in {path}")
