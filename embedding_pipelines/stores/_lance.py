"""How LanceDB is reached: its import, its connections, its event loop, and its errors in readable
words."""

import contextlib
import functools
import os
import re
from collections.abc import Coroutine, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from embedding_pipelines.errors import StoreError

Result = TypeVar("Result")


def lancedb() -> Any:
    os.environ.setdefault(
        "LANCEDB_LOG", "error"
    )  # read at import; its warnings are about index internals
    import lancedb

    return lancedb


@functools.lru_cache(maxsize=16)
def connect(folder: Path) -> Any:
    # Consistency 0: a handle that was opened earlier still sees what other processes commit.
    return lancedb().connect(folder, read_consistency_interval=timedelta(0))


def wait(work: Coroutine[Any, Any, Result]) -> Result:
    """Runs `work` in lancedb's own background loop, as its sync side does: callers may have a loop
    of theirs."""
    done: Result = lancedb().background_loop.LOOP.run(work)
    return done


@contextlib.contextmanager
def opening(folder: Path, name: str, version: int | None) -> Iterator[None]:
    """Says what to do when lancedb cannot open the table."""
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        remedy = (
            f"Delete its folder {name}.lance and run the pipeline: it is made anew, nothing is embedded twice."
            if version is None
            else "Open the live release again, go to another one by `rollback --to`, or run the pipeline."
        )
        raise StoreError(
            f"Table {name!r}{f' version {version}' if version else ''} in {folder} cannot be opened: "
            f"{short(error)} {remedy}"
        ) from error


def short(error: Exception) -> str:
    """A Lance error without its source places and backtrace."""
    text = (
        re.sub(r",? ?(at )?[^\s,]*\.rs:\d+(:\d+)?", "", str(error).splitlines()[0])
        if str(error)
        else ""
    )
    return (text.strip() or type(error).__name__).rstrip(".?, ") + "."


def named(column: str) -> str:
    """A column as SQL wants it."""
    return column if re.fullmatch(r"[a-z_][a-z0-9_]*", column) else f"`{column}`"


def quoted(text: str) -> str:
    """An SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


class Watched(Iterator[pa.RecordBatch]):
    """Batches, and what went wrong in making them: Lance turns every error of an iterator into its
    own."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self._batches = iter(batches)
        self.failure: BaseException | None = None

    def __next__(self) -> pa.RecordBatch:
        try:
            return next(self._batches)
        except StopIteration:
            raise
        except BaseException as error:
            self.failure = error
            raise
