"""Reaches LanceDB: its compiled module, connections and event loop, and its errors in plain words.

`import lancedb` takes 2 s of processor time, which is mostly spent on the requests of a server that
is not used here; its compiled module alone takes 0.04. That module is typed, but no public interface:
pyproject.toml holds lancedb to one minor version, and mypy and this stage's tests to what is called.
"""

import contextlib
import ctypes
import os
import re
import urllib.parse
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import pyarrow as pa

from embedding_pipelines import extras
from embedding_pipelines.allocators import return_memory
from embedding_pipelines.errors import StoreError

if TYPE_CHECKING:
    from lancedb._lancedb import Connection, Session

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")

# What Lance reads ahead of whoever takes the rows, 2 GB by its own default. An exact search of
# 1,000,000 x 384 float16: 926 MB with that and 544 with this, 2.6 s either way; its index trained:
# 1,108 MB and 877.
READ_AHEAD_BYTES = 32 << 20
METADATA_BYTES = 64 << 20  # of tables' files, beside their indices


def part(name: str) -> Any:
    """A module of lancedb by its name there, without the package around it."""
    # LanceDB reads these when it is loaded; its warnings are about index internals.
    os.environ.setdefault("LANCEDB_LOG", "error")
    os.environ.setdefault("LANCE_DEFAULT_IO_BUFFER_SIZE", str(READ_AHEAD_BYTES))
    return extras.part("lancedb", name)


async def connect(
    folder: str, consistency_seconds: float | None = None, session: "Session | None" = None
) -> "Connection":
    """A connection to what `address` says; `consistency_seconds` as lancedb's
    `read_consistency_interval`."""
    connection: Connection = await part("_lancedb").connect(
        folder, None, None, None, None, consistency_seconds, None, None, session
    )
    return connection


def session(index_memory: int) -> "Session":
    """What connections share that hold so many bytes of indices at most between searches."""
    result: Session = part("_lancedb").Session(index_memory, METADATA_BYTES)
    return result


@dataclass(frozen=True)
class Source:
    """Rows to write, under the names that the compiled module asks for."""

    schema: pa.Schema
    reader: Callable[[], pa.RecordBatchReader]
    num_rows: int | None = None
    rescannable: bool = False


def address(folder: Path) -> str:
    """How lancedb is to be told a folder. Raises StoreError for a name that it cannot open.

    Lance 13 makes folders for its tags under the percent-encoded name of a path, a second tree
    beside the first. Its other scheme for files decodes what it is given, and makes none.
    """
    text = str(folder.absolute())
    if re.fullmatch(r"[A-Za-z0-9_./ -]+", text):
        return text
    if not re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", text):
        return f"file-object-store://{urllib.parse.quote(text)}"
    raise StoreError(
        f"The path {text!r} holds a control character, or bytes that are not UTF-8. LanceDB opens no "
        "table below it. Move the home folder to another path."
    )


def call(
    method: Callable[Arguments, Awaitable[Result]],
    *arguments: Arguments.args,
    **options: Arguments.kwargs,
) -> Result:
    """What an async method gives. It runs in lancedb's own background loop, for callers may have a
    loop of their own, and the compiled module's methods are called where a loop runs."""

    async def run() -> Result:
        return await method(*arguments, **options)

    result: Result = part("background_loop").LOOP.run(run())
    return result


@contextlib.contextmanager
def sparing_memory() -> Iterator[None]:
    """Large blocks that are freed meanwhile go back to the system at once, where glibc would keep
    them: training `sq` on 155,000 x 384 then takes 210 MB in place of 350. Not always, for they are
    cleared with each use, and a whole run takes twice the system's time. It holds for all threads of
    the process, and glibc's own adjusting of that bound ends with it."""
    return_memory()
    _map_from(1 << 20)
    try:
        yield
    finally:
        _map_from(32 << 20)  # to which glibc by itself goes up as blocks are freed
        return_memory()


def _map_from(size: int) -> None:
    """Have the C library map blocks of `size` bytes or more by themselves; glibc alone does."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(-3, size)  # M_MMAP_THRESHOLD


def batches_of(query: Any) -> Iterator[pa.RecordBatch]:
    """The rows of a query as they come."""
    stream = call(query.execute, None, None)
    while (batch := call(anext, stream, None)) is not None:
        yield batch


async def rows_of(query: Any) -> pa.Table:
    """All rows of a query."""
    stream = await query.execute(None, None)
    return pa.Table.from_batches([batch async for batch in stream], stream.schema)


@contextlib.contextmanager
def explain_open_errors(folder: Path, name: str, version: int | None) -> Iterator[None]:
    """Turn lancedb's errors of opening a table into StoreError with a remedy."""
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        which = repr(name) if version is None else f"{name!r} version {version}"
        remedy = (
            f"Delete its folder {name}.lance and run the pipeline; it embeds nothing twice."
            if version is None
            else "Open the live release again, `rollback --to` another one, or run the pipeline."
        )
        raise StoreError(
            f"Table {which} in {folder} cannot be opened: {short(error)} {remedy}"
        ) from error


@contextlib.contextmanager
def explain_errors(folder: Path, name: str, use: str) -> Iterator[None]:
    """Turn what lancedb raises while a table is in use into StoreError."""
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        raise StoreError(f"Table {name!r} in {folder} cannot be {use}: {short(error)}") from error


def short(error: Exception) -> str:
    """A Lance error without its source places and backtrace."""
    first = (str(error).splitlines() or [""])[0]
    text = re.sub(r",? ?(at )?[^\s,]*\.rs:\d+(:\d+)?", "", first)
    return (text.strip() or type(error).__name__).rstrip(".?, ") + "."


def quote_text(text: str) -> str:
    """A string literal in SQL."""
    return "'" + text.replace("'", "''") + "'"


def record_failure(
    batches: Iterable[pa.RecordBatch], failures: list[BaseException]
) -> Iterator[pa.RecordBatch]:
    """The batches; if they fail, the error goes to `failures`: Lance hides it in its own."""
    try:
        yield from batches
    except GeneratorExit:
        raise
    except BaseException as error:
        failures.append(error)
        raise
