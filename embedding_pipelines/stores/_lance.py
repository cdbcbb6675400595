"""Reaches LanceDB: its import, connections and event loop, and its errors in plain words."""

import contextlib
import os
import re
import urllib.parse
from collections.abc import Coroutine, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from embedding_pipelines.errors import StoreError

Result = TypeVar("Result")


def lancedb() -> Any:
    # LanceDB reads this at import; its warnings are about index internals.
    os.environ.setdefault("LANCEDB_LOG", "error")
    import lancedb

    return lancedb


def connect(folder: Path) -> Any:
    """A connection; its tables see what other processes commit, however old a handle is."""
    return lancedb().connect(address(folder), read_consistency_interval=timedelta(0))


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


def wait(work: Coroutine[Any, Any, Result]) -> Result:
    """Run `work` in lancedb's own background loop, for callers may have a loop of their own."""
    result: Result = lancedb().background_loop.LOOP.run(work)
    return result


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
