"""`bundle` and `import`: a release in one file, for another machine."""

from pathlib import Path
from typing import Annotated

import typer

from embedding_pipelines.cli.common import Name, Outcomes, Output, find_released, open_warehouse
from embedding_pipelines.cli.terminal import TerminalProgress, make_console, say
from embedding_pipelines.environment import home as home_folder

app = typer.Typer()

To = Annotated[
    Path | None,
    typer.Option(
        "--to",
        metavar="PATH",
        help="Where to write it: an archive if it ends in .tar, else a folder (default: "
        "PIPELINE-RELEASE.tar here).",
    ),
]
Source = Annotated[
    str,
    typer.Argument(
        metavar="PATH", help="What `bundle` wrote: a file, a folder or s3://bucket/key."
    ),
]


@app.command("bundle")
def write(name: Name, to: To = None) -> Outcomes:
    """Seal the live release of a pipeline for another machine.

    The bundle holds the table, the codec, the model's files or how to fetch them, texts with their
    vectors, licences, a bill of materials and a checksum of each file. `import` takes it up and goes
    on from it; `serve --bundle` serves it.
    """
    from embedding_pipelines.releases import live_release
    from embedding_pipelines.serving.bundle import write_bundle

    warehouse, name = open_warehouse(), find_released(name)
    number = live_release(warehouse.pipeline(name)).number
    to = to or Path(f"{name}-{number}.tar")
    with TerminalProgress(make_console(), name) as progress:
        description = write_bundle(warehouse, name, to, progress=progress)
    files = [to] if to.is_file() else [to / path for path in description.files]
    size = sum(path.stat().st_size for path in files)
    result = description.model_dump(mode="json", exclude={"files"})
    rows = f"{description.rows:,} rows, {size:,} bytes"
    words = f"{to}: release {description.release} of {name}, {rows}"
    next_run = "" if description.has_shards else "No run can go on from it."
    lines = [words, f"model: {description.model.fetch}", *filter(None, [next_run])]
    yield Output([{"path": str(to), "size_bytes": size, **result}], lambda: say(*lines))


@app.command("import")
def take_up(path: Source) -> Outcomes:
    """Make a bundle the live release, and go on from it.

    It is refused if a checksum is wrong, or if the model of this machine does not give the vectors
    that the bundle holds. What this home has forgotten is left out.
    """
    from embedding_pipelines.serving.bundle import at_hand
    from embedding_pipelines.serving.imports import import_bundle

    with TerminalProgress(make_console(), "import") as progress, at_hand(path) as source:
        result = import_bundle(open_warehouse(), source, progress)
    name = result.pipeline
    lines = [
        f"{name}: release {result.release} is live, {result.rows:,} rows; golden vectors reproduce "
        f"at a cosine of {result.least_cosine:.4f} or more"
    ]
    if result.forgotten:
        lines.append(f"{result.forgotten:,} documents that were forgotten here are left out")
    if result.before is not None:
        lines.append(
            f"before: release {result.before}; to go back: embedding-pipelines rollback {name}"
        )
    lines += [f"new: {home_folder() / file}" for file in result.files] + result.notes
    yield Output([vars(result)], lambda: say(*lines))
