"""`push`: documents straight into a pipeline, without a file of its source."""

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from embedding_pipelines.cli.common import (
    Name,
    Outcomes,
    Output,
    Problem,
    load_spec,
    open_warehouse,
)
from embedding_pipelines.cli.terminal import counted, say
from embedding_pipelines.errors import DocumentError

DOCUMENTS_AT_ONCE = 1_000  # of a file; each thousand is taken as a whole

app = typer.Typer()


@app.command()
def push(
    name: Name,
    file: Annotated[
        str | None,
        typer.Argument(metavar="FILE", help="A JSON object in each line; `-` reads stdin."),
    ] = None,
    deleted: Annotated[
        list[str] | None, typer.Option("--delete", metavar="ID", help="Delete a document.")
    ] = None,
    withdrawn: Annotated[
        list[str] | None,
        typer.Option("--withdraw", metavar="ID", help="Take back what was pushed of a document."),
    ] = None,
) -> Outcomes:
    """Put documents into a pipeline, or delete some.

    Searches see it at once. Fields have the names of the source's columns. What is pushed has the
    last word on its document, whatever files say, until it is withdrawn; the next run takes it into
    a release.
    """
    from embedding_pipelines.push import Pusher

    if file is None and not deleted and not withdrawn:
        words = "name a file of documents, or documents by --delete or --withdraw."
        raise typer.BadParameter(words)
    spec = load_spec(name)
    with Pusher(spec, open_warehouse()) as pusher:
        if file is not None:
            count = chunks = last = 0
            try:
                for lines in _batches(file):
                    places = [f"{file}:{number}" for number, _ in lines]
                    receipt = pusher.put([document for _, document in lines], places.__getitem__)
                    count, chunks = count + receipt.documents, chunks + receipt.chunks
                    last = lines[-1][0]
                    yield Output([asdict(receipt)])
            except DocumentError as error:
                before = (
                    f"The {counted(count, 'document')} up to line {last:,} are taken, and may be "
                    "pushed again."
                )
                yield Problem(f"{error}{f' {before}' if count else ''}", spec.name)
                return
            words = f"{spec.name}: pushed {counted(count, 'document')}, {counted(chunks, 'chunk')}"
            yield Output([], partial(say, words))
        for verb, ids, done in (
            (pusher.delete, deleted, "deleted"),
            (pusher.withdraw, withdrawn, "withdrew"),
        ):
            if ids:
                receipt = verb(ids)
                unknown = f"; nothing was there of {', '.join(receipt.unknown)}"
                words = f"{spec.name}: {done} {counted(receipt.documents, 'document')}"
                words += unknown if receipt.unknown else ""
                yield Output([asdict(receipt)], partial(say, words))


def _batches(file: str) -> Iterator[list[tuple[int, Any]]]:
    """The documents of a file, each with its line, so many at once. Raises DocumentError for a line
    that is no JSON."""
    documents = _documents(file)
    while batch := list(islice(documents, DOCUMENTS_AT_ONCE)):
        yield batch


def _documents(file: str) -> Iterator[tuple[int, Any]]:
    with contextlib.ExitStack() as stack:
        lines = sys.stdin.buffer if file == "-" else stack.enter_context(Path(file).open("rb"))
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DocumentError(
                    f"{file}:{number} is no JSON: {error}. Write one object in each line, in UTF-8."
                ) from None
