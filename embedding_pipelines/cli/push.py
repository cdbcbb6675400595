"""`push`: documents straight into a pipeline, without a file of its source."""

import contextlib
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedding_pipelines.cli import remote
from embedding_pipelines.cli.common import (
    Name,
    Outcomes,
    Output,
    Problem,
    ServerUrl,
    load_spec,
    open_warehouse,
)
from embedding_pipelines.cli.terminal import counted, say
from embedding_pipelines.errors import DocumentError

if TYPE_CHECKING:
    from embedding_pipelines.push import Pusher, Receipt
    from embedding_pipelines.serving.wire import DocumentsReceipt

DOCUMENTS_AT_ONCE = 1_000  # of a file; each thousand is taken as a whole
BYTES_AT_ONCE = 16 << 20  # of lines, where documents are large: a server reads twice as much

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
    server: ServerUrl = None,
) -> Outcomes:
    """Put documents into a pipeline, or delete some.

    Searches see it at once. Fields have the names of the source's columns. What is pushed has the
    last word on its document, whatever files say, until it is withdrawn; the next run takes it into
    a release.
    """
    if file is None and not deleted and not withdrawn:
        words = "name a file of documents, or documents by --delete or --withdraw."
        raise typer.BadParameter(words)
    opened: Pusher | remote.RemotePusher
    opened = remote.RemotePusher(server, name) if server else _open_pusher(name)
    with opened as pusher:
        if file is not None:
            try:
                yield from _put(pusher, file)
            except DocumentError as error:
                yield Problem(str(error), pusher.pipeline)
                return
        if deleted:
            yield _say(pusher.delete(deleted), "deleted")
        if withdrawn:
            yield _say(pusher.withdraw(withdrawn), "withdrew")


def _open_pusher(name: str) -> "Pusher":
    """For a pipeline of this folder."""
    from embedding_pipelines.push import Pusher

    return Pusher(load_spec(name), open_warehouse())


def _put(pusher: "Pusher | remote.RemotePusher", file: str) -> Outcomes:
    """Put the documents of a file, thousand by thousand. Raises DocumentError for one that is wrong,
    which says how many before it are taken."""
    count = chunks = last = 0
    try:
        for lines in _batches(file):
            places = [f"{file}:{number}" for number, _ in lines]
            receipt = pusher.put([document for _, document in lines], places.__getitem__)
            count, chunks = count + receipt.documents, chunks + receipt.chunks
            last = lines[-1][0]
            yield Output([vars(receipt)])
    except DocumentError as error:
        before = ""
        if count:
            before = f" The {counted(count, 'document')} up to line {last:,} are taken, and may be "
            before += "pushed again."
        raise DocumentError(f"{error}{before}") from None
    pushed = f"pushed {counted(count, 'document')}, {counted(chunks, 'chunk')}"
    yield Output([], partial(say, f"{pusher.pipeline}: {pushed}"))


def _say(receipt: "Receipt | DocumentsReceipt", done: str) -> Output:
    unknown = f"; nothing was there of {', '.join(receipt.unknown)}" if receipt.unknown else ""
    words = f"{receipt.pipeline}: {done} {counted(receipt.documents, 'document')}{unknown}"
    return Output([vars(receipt)], partial(say, words))


def _batches(file: str) -> Iterator[list[tuple[int, Any]]]:
    """The documents of a file, each with its line, so many at once. Raises DocumentError for a line
    that is no JSON."""
    batch, size = list[tuple[int, Any]](), 0
    for number, document, length in _documents(file):
        if batch and (len(batch) == DOCUMENTS_AT_ONCE or size + length > BYTES_AT_ONCE):
            yield batch
            batch, size = [], 0
        batch.append((number, document))
        size += length
    if batch:
        yield batch


def _documents(file: str) -> Iterator[tuple[int, Any, int]]:
    """Each with its line, and how many bytes that has."""
    with contextlib.ExitStack() as stack:
        lines = sys.stdin.buffer if file == "-" else stack.enter_context(Path(file).open("rb"))
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line), len(line)
            except (ValueError, RecursionError) as error:
                raise DocumentError(
                    f"{file}:{number} is no JSON: {error}. Write one object in each line, in UTF-8."
                ) from None
