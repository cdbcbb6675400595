"""The cache: each vector that was ever made, found again by what it was made from.

One SQLite file for all pipelines. Key: 128 bits over space id, input type and the exact text, so
renamed files, duplicate texts, a second pipeline and a model switched back cost nothing, and two
models never serve each other's vectors. Values: float32, little-endian.
"""

import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from embedding_pipelines.errors import StoreError
from embedding_pipelines.providers.base import InputType
from embedding_pipelines.schemas import digest
from embedding_pipelines.vectors import Vectors

LOOKUP_KEYS = (
    4_096  # per statement; measured fastest between 1,000 and 16,000 (SQLite allows 32,766)
)
BUSY_SECONDS = 60.0  # another process writes one batch at a time, in milliseconds

assert sys.byteorder == "little", "the cache stores little-endian float32"


class EmbeddingCache:
    """A durable map from (space, input type, text) to float32[d]. Safe for several processes at
    once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._readable_errors("opened"):
            self._database = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
            # Before the first table; of no effect later. 384-d rows of 1.6 kB waste 20% of a page
            # of 4,096 bytes, 2% of this one; look-ups are as fast (measured: 137,000 to 186,000 a
            # second with either).
            self._database.execute("PRAGMA page_size = 8192")
            # WAL: readers never wait for the writer. NORMAL: a killed process loses nothing that
            # was committed; a power cut may lose the last commits, which are then embedded again.
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL)"
            )

    @staticmethod
    def key(space_id: str, input_type: InputType, text: str) -> bytes:
        """What a vector is filed under, 16 bytes."""
        return digest(space_id.encode(), input_type.encode(), text.encode())

    def get(self, keys: Sequence[bytes], dimensions: int) -> dict[bytes, Vectors]:
        """The known ones among `keys`, each float32[dimensions]; a value of another size is not
        believed."""
        found: dict[bytes, Vectors] = {}
        for start in range(0, len(keys), LOOKUP_KEYS):
            part = keys[start : start + LOOKUP_KEYS]
            marks = ",".join("?" * len(part))
            statement = f"SELECT key, vector FROM vectors WHERE key IN ({marks})"
            with (
                self._readable_errors("read"),
                closing(self._database.execute(statement, part)) as rows,
            ):
                for key, value in rows:
                    if len(value) == 4 * dimensions:
                        found[key] = np.frombuffer(value, np.float32)
        return found

    def put(self, keys: Sequence[bytes], vectors: Vectors) -> None:
        """File vectors float32[len(keys), d] in one transaction; after it returns a kill loses
        nothing."""
        values = [row.tobytes() for row in np.ascontiguousarray(vectors, np.float32)]
        with self._readable_errors("written"):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                rows = zip(keys, values, strict=True)
                self._database.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:  # SQLite itself ends it when the disk is full
                    self._database.execute("ROLLBACK")
                raise

    @contextmanager
    def _readable_errors(self, done: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(
                f"The cache {self.path} cannot be {done}: {error}. If the file is damaged, move it away; "
                "its vectors are then made anew."
            ) from error

    def __len__(self) -> int:
        return int(self._database.execute("SELECT count(*) FROM vectors").fetchone()[0])

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
