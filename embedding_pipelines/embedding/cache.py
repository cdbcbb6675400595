"""The embedding cache: every vector that was ever computed, filed under what it was computed from.

One SQLite file for all pipelines and programs. Key: 128 bits over space id, input type and the
exact content, a text or the digest of an image's pixels, so renamed files, duplicates, a second
pipeline and a model switched back cost nothing, and two models never serve each other's vectors.
Values: float32, little-endian, each with a CRC-32 of key and value: a damaged one counts as missing.
"""

import sqlite3
import sys
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import chain
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pyarrow as pa

from embedding_pipelines.errors import ProviderError, StoreError
from embedding_pipelines.providers.base import EmbeddingModel, InputType, check_reply
from embedding_pipelines.schemas import IMAGE, TEXT, digest
from embedding_pipelines.space import Space
from embedding_pipelines.vectors import Vectors

# Per statement; measured fastest between 1,000 and 16,000 (SQLite allows 32,766).
LOOKUP_KEYS = 4_096
INSERT_ROWS = 1_024
ROW_BYTES = 40  # of a row besides its vector: key, checksum, and the index
WORTH_SHRINKING = 0.25  # of the file: less is left for later vectors
BUSY_SECONDS = 60.0  # another process writes one batch at a time, in milliseconds
FILE_NAME = "cache.sqlite"
IN_MEMORY = Path(":memory:")  # SQLite's name for a database that is gone when it is closed

assert sys.byteorder == "little", "the cache stores little-endian float32"


class EmbeddingCache:
    """A durable map from (space, input type, text) to float32[d], for any number of threads and
    processes.

    Within `with` the file stays open; else each call opens it and closes it again. `read_only`
    neither creates nor changes a file, and takes one that is missing for an empty cache.

    For programs, `get`, `set` and `get_or_create` take a text and its model: an open model, its
    `Space`, or any name that stands for one model in one configuration. A vector never goes stale:
    a changed model is another space.
    """

    def __init__(
        self,
        path: Path | str | None = None,
        *,
        cache_dir: Path | str = ".embedding_cache",
        read_only: bool = False,
    ) -> None:
        self.path = Path(cache_dir) / FILE_NAME if path is None else Path(path)
        self.read_only = read_only
        self._database: sqlite3.Connection | None = None
        self._users = 0  # `with` blocks that hold it open
        self._lock = threading.RLock()
        # Look-ups do not wait while another thread commits.
        self._reader: sqlite3.Connection | None = None
        self._reader_lock = threading.Lock()
        self.damaged: set[bytes] = set()  # keys that were looked up and whose values are damaged

    @staticmethod
    def key(space_id: str, input_type: InputType | Literal["image"], content: str) -> bytes:
        """What a vector is filed under, 16 bytes; the content of an image is its pixels' digest."""
        return digest(space_id.encode(), input_type.encode(), content.encode())

    def get_many(self, keys: Sequence[bytes], dimensions: int | None) -> dict[bytes, Vectors]:
        """The hits among `keys`, each float32[dimensions], read-only; None: of any size. A value of
        another size is a miss, and so is one that is damaged, whose key `damaged` then has."""
        hits: dict[bytes, Vectors] = {}
        with self._open_to_read() as database:
            # A cache of an earlier version that nobody has written to since has no checksums.
            checksum = "checksum" if _has_checksums(database) else "NULL"
            for start in range(0, len(keys), LOOKUP_KEYS):
                part = keys[start : start + LOOKUP_KEYS]
                marks = ",".join("?" * len(part))
                statement = f"SELECT key, vector, {checksum} FROM vectors WHERE key IN ({marks})"
                with closing(database.execute(statement, part)) as rows:
                    for key, value, expected in rows:
                        if expected not in (None, _checksum(key, value)):
                            self.damaged.add(key)
                        elif dimensions is None or len(value) == 4 * dimensions:
                            hits[key] = np.frombuffer(value, np.float32)
        return hits

    def get_or_claim(
        self, keys: Sequence[bytes], dimensions: int
    ) -> tuple[dict[bytes, Vectors], set[bytes]]:
        """As `get_many`, and those of the misses that another worker is embedding, which will be
        hits; all other misses are the caller's to embed. Here nobody else is."""
        return self.get_many(keys, dimensions), set()

    def give_up(self, keys: Sequence[bytes]) -> None:
        """Let others have what `get_or_claim` has left to the caller, who has no vectors for it."""

    def put_many(self, keys: Sequence[bytes], vectors: Vectors, space_id: str) -> None:
        """File vectors float32[len(keys), d] in one transaction, and the space that they are of;
        after it returns a kill loses nothing. Raises StoreError if the cache is read-only."""
        if self.read_only:
            raise StoreError(f"The cache {self.path} is open for reading only.")
        values = [row.tobytes() for row in np.ascontiguousarray(vectors, np.float32)]
        # In the order of the index: each of its pages is looked for once, an eighth less time.
        rows = sorted(zip(keys, values, map(_checksum, keys, values), strict=True))
        with self._open("written") as database, database:  # commits, or rolls back
            database.execute("BEGIN IMMEDIATE")
            # Many at a time: at each statement other threads of Python get the floor.
            for start in range(0, len(rows), INSERT_ROWS):
                part = rows[start : start + INSERT_ROWS]
                marks = ",".join(["(?,?,?)"] * len(part))
                statement = f"INSERT OR REPLACE INTO vectors VALUES {marks}"
                database.execute(statement, tuple(chain.from_iterable(part)))
            database.execute("INSERT OR IGNORE INTO spaces VALUES (?)", (space_id,))

    @property
    def damage_note(self) -> str:
        """What a user should know of what was looked up; empty if nothing is damaged."""
        if not self.damaged:
            return ""
        count = len(self.damaged)
        return f"{count:,} damaged vectors of the cache {self.path} are embedded anew."

    def spaces(self) -> set[str]:
        """The ids of all spaces that vectors were ever filed in, whoever did it; without those of
        an earlier version of this package, which kept no list."""
        with self._open("read") as database:
            if not _has_table(database, "spaces"):
                return set()
            return {name for (name,) in database.execute("SELECT id FROM spaces")}

    def remove_many(self, keys: Sequence[bytes]) -> tuple[int, bool]:
        """Forget these vectors, in one transaction; how many there were, and whether they are
        overwritten on the disk, too: another process that reads for BUSY_SECONDS keeps them in the
        file until the last one has closed it."""
        with self._open("written") as database:
            with database:
                database.execute("BEGIN IMMEDIATE")
                rows = [(key,) for key in keys]
                count = database.executemany("DELETE FROM vectors WHERE key = ?", rows).rowcount
                database.executemany("DELETE FROM unused WHERE key = ?", rows)
            busy, *_ = database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return max(count, 0), not busy

    def count_used(
        self, users: Mapping[str, Iterable[Sequence[bytes]]], forget_others: bool = False
    ) -> tuple[int, dict[str, int]]:
        """How many vectors there are, and how many of them each user's keys name, what several
        name for the first. `forget_others` deletes what nobody names and makes the file smaller."""
        with self._with_used(users, forget_others) as database:
            count = int(database.execute("SELECT count(*) FROM vectors").fetchone()[0])
            rows = database.execute(
                "SELECT user, count(*) FROM used JOIN vectors USING (key) GROUP BY user"
            ).fetchall()
            if forget_others:
                database.execute("DELETE FROM vectors WHERE key NOT IN (SELECT key FROM used)")
                database.execute("DELETE FROM unused")
                _shrink(database)
        return count, dict.fromkeys(users, 0) | {user: int(number) for user, number in rows}

    def damage(self) -> list[bytes]:
        """The keys of all values that are not what was written. Raises StoreError for a file that
        SQLite cannot read to its end."""
        damaged = []
        with self._open("read") as database:
            checksum = "checksum" if _has_checksums(database) else "NULL"
            with closing(database.execute(f"SELECT key, vector, {checksum} FROM vectors")) as rows:
                for key, value, expected in rows:
                    if expected not in (None, _checksum(key, value)):
                        damaged.append(key)
        return damaged

    def expire(
        self,
        users: Mapping[str, Iterable[Sequence[bytes]]],
        today: int,
        days: int | None,
        most_bytes: int | None,
        look_only: bool = False,
    ) -> tuple[int, int]:
        """Delete vectors that no user's keys name: those that were first seen so `days` days ago or
        earlier, and more of them, the longest unused first, while the file is larger than
        `most_bytes`. `today` is a day's number, kept for those that are seen unused for the first
        time. Returns how many vectors go and their bytes; with `look_only` they stay."""
        with self._with_used(users, not look_only) as database:
            unused = "unused" if _has_table(database, "unused") else "(SELECT 0 key, 0 since)"
            source = (
                f"vectors LEFT JOIN {unused} AS unused USING (key) "
                "WHERE vectors.key NOT IN (SELECT key FROM used)"
            )
            if not look_only:
                with database:
                    database.execute("BEGIN IMMEDIATE")
                    database.execute(
                        "DELETE FROM unused WHERE key IN (SELECT key FROM used) "
                        "OR key NOT IN (SELECT key FROM vectors)"
                    )
                    database.execute(
                        f"INSERT OR IGNORE INTO unused SELECT vectors.key, ? FROM {source}",
                        (today,),
                    )
            rows = database.execute(
                "SELECT coalesce(since, ?) AS day, vectors.rowid AS row, length(vector) "
                f"FROM {source} ORDER BY day, row",
                (today,),
            )
            size, count, gone, last = _size(database), 0, 0, (0, 0)
            for day, row, length in rows:
                is_old = days is not None and day <= today - days
                if not is_old and (most_bytes is None or size - gone <= most_bytes):
                    break
                count, gone, last = count + 1, gone + length + ROW_BYTES, (day, row)
            rows.close()
            if count and not look_only:
                with database:
                    database.execute("BEGIN IMMEDIATE")
                    database.execute(
                        "DELETE FROM vectors WHERE key IN (SELECT vectors.key FROM "
                        f"{source} AND (coalesce(since, ?), vectors.rowid) <= (?, ?))",
                        (today, *last),
                    )
                    database.execute(
                        "DELETE FROM unused WHERE key NOT IN (SELECT key FROM vectors)"
                    )
                if gone >= size * WORTH_SHRINKING:
                    _shrink(database)
        return count, gone

    @contextmanager
    def _with_used(
        self, users: Mapping[str, Iterable[Sequence[bytes]]], is_writing: bool
    ) -> Iterator[sqlite3.Connection]:
        """The database with a temporary table `used`: each key that users name, and its first
        user."""
        with self._open("written" if is_writing else "read") as database:
            database.execute("CREATE TEMP TABLE used (key BLOB PRIMARY KEY, user TEXT)")
            try:
                for user, batches in users.items():
                    for keys in batches:
                        entries = ((key, user) for key in keys)
                        database.executemany("INSERT OR IGNORE INTO used VALUES (?, ?)", entries)
                yield database
            finally:
                database.execute("DROP TABLE used")

    def get(
        self, text: str, model: EmbeddingModel | Space | str, input_type: InputType = "document"
    ) -> Vectors | None:
        """The vector float32[d] of a text, None if it is not in the cache."""
        name, space = _identity(model)
        key = self.key(name, input_type, text)
        vector = self.get_many([key], space.dimensions if space else None).get(key)
        return None if vector is None else vector.copy()

    def set(
        self,
        text: str,
        model: EmbeddingModel | Space | str,
        vector: Sequence[float] | Vectors,
        input_type: InputType = "document",
    ) -> None:
        """File a vector [d]. Raises ProviderError for one that no text of this model can have."""
        name, space = _identity(model)
        row = np.asarray(vector, np.float32)
        if space is not None:
            check_reply(row[None], [text], space)
        elif row.ndim != 1 or not row.any() or not np.isfinite(row).all():
            raise ProviderError(
                f"{name}: a vector is a row of finite numbers, not all 0. Nothing was stored."
            )
        self.put_many([self.key(name, input_type, text)], row[None], name)

    def get_or_create(
        self,
        text: str,
        model: EmbeddingModel | Space | str,
        embed: Callable[[str], Sequence[float] | Vectors],
        input_type: InputType = "document",
    ) -> Vectors:
        """float32[d]; `embed(text)`, which is then filed, if it is not in the cache. Raises as
        `set`."""
        vector = self.get(text, model, input_type)
        if vector is None:
            vector = np.array(embed(text), np.float32)
            self.set(text, model, vector, input_type)
        return vector

    def __len__(self) -> int:
        with self._open("read") as database:
            return int(database.execute("SELECT count(*) FROM vectors").fetchone()[0])

    def __enter__(self) -> Self:
        with self._lock, self._readable_errors("opened"):
            if self._database is None and not self.read_only:
                self._database = self._connect()
                if self.path != IN_MEMORY:
                    self._reader = _connect(str(self.path))
            self._users += 1
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self.close()

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        with self._lock, self._reader_lock:
            for database in (self._reader, self._database):
                if database is not None:
                    database.close()
            self._reader = self._database = None

    @contextmanager
    def _open_to_read(self) -> Iterator[sqlite3.Connection]:
        with self._reader_lock, self._readable_errors("read"):
            if self._reader is not None:
                yield self._reader
                return
        with self._open("read") as database:
            yield database

    @contextmanager
    def _open(self, use: str) -> Iterator[sqlite3.Connection]:
        """The database, for this thread alone."""
        with self._lock, self, self._readable_errors(use):
            if self._database is not None:
                yield self._database
                return
            with closing(self._connect_to_read()) as database:
                yield database

    def _connect(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        database = _connect(str(self.path))
        try:
            # Before the first table; of no effect later. 384-d rows of 1.6 kB waste 20% of a page
            # of 4,096 bytes, 2% of this one; look-ups are as fast (measured: 137,000 to 186,000 a
            # second with either).
            database.execute("PRAGMA page_size = 8192")
            # WAL: readers never wait for the writer. NORMAL: a killed process loses nothing that
            # was committed; a power cut may lose the last commits, which are then embedded again.
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            # A transaction of some MB stays in memory until it is committed, and a run waits less
            # often for the disk, at 128 MB of the log: a quarter more short texts a second.
            database.execute("PRAGMA cache_size = -16384")
            database.execute("PRAGMA wal_autocheckpoint = 16384")
            database.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten
            _create_table(database)
        except BaseException:
            database.close()
            raise
        return database

    def _connect_to_read(self) -> sqlite3.Connection:
        """For one call: how it is opened depends on whether another process writes now."""
        if not self.path.exists() or not self.path.stat().st_size:
            database = _connect(str(IN_MEMORY))
            _create_table(database)
            return database
        # With both files beside it, the last commits are read from there, and neither is changed.
        # Else `immutable`, since SQLite would create them to read.
        beside = [self.path.with_name(self.path.name + ending) for ending in ("-wal", "-shm")]
        in_use = all(path.exists() for path in beside)
        mode = "mode=ro&readonly_shm=1" if in_use else "immutable=1"
        return _connect(f"{self.path.absolute().as_uri()}?{mode}", uri=True)

    @contextmanager
    def _readable_errors(self, use: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(
                f"The cache {self.path} cannot be {use}: {error}. If the file is damaged, move it "
                "away; its vectors are then computed again."
            ) from error


def content_keys(space_id: str, input_type: InputType, rows: pa.RecordBatch) -> list[bytes]:
    """The key of each row: of its image if there is a column of images and it has one, else of its
    text."""
    contents: list[tuple[InputType | Literal["image"], str]] = [
        (input_type, text) for text in rows[TEXT].to_pylist()
    ]
    if IMAGE in rows.schema.names:
        images = rows[IMAGE].to_pylist()
        pairs = zip(images, contents, strict=True)
        contents = [("image", image) if image else content for image, content in pairs]
    keys = {content: EmbeddingCache.key(space_id, *content) for content in set(contents)}
    return [keys[content] for content in contents]


def _connect(name: str, uri: bool = False) -> sqlite3.Connection:
    return sqlite3.connect(
        name, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=uri
    )


def _create_table(database: sqlite3.Connection) -> None:
    database.execute(
        "CREATE TABLE IF NOT EXISTS vectors "
        "(key BLOB PRIMARY KEY, vector BLOB NOT NULL, checksum INTEGER)"
    )
    database.execute(  # the day on which `expire` first saw that nobody uses a vector
        "CREATE TABLE IF NOT EXISTS unused (key BLOB PRIMARY KEY, since INTEGER NOT NULL)"
    )
    # Keys do not tell their space, and `forget` has to find what a text has in any of them.
    database.execute("CREATE TABLE IF NOT EXISTS spaces (id TEXT PRIMARY KEY)")
    if not _has_checksums(database):  # of an earlier version; its vectors have none
        with database:
            database.execute("BEGIN IMMEDIATE")
            if not _has_checksums(database):  # another process was quicker
                database.execute("ALTER TABLE vectors ADD COLUMN checksum INTEGER")


def _has_table(database: sqlite3.Connection, name: str) -> bool:
    statement = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
    return database.execute(statement, (name,)).fetchone() is not None


def _size(database: sqlite3.Connection) -> int:
    """The bytes in use of the file."""
    names = ("page_count", "freelist_count", "page_size")
    pages, free, size = (database.execute(f"PRAGMA {name}").fetchone()[0] for name in names)
    return int((pages - free) * size)


def _shrink(database: sqlite3.Connection) -> None:
    database.execute("VACUUM")
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _has_checksums(database: sqlite3.Connection) -> bool:
    columns = database.execute("PRAGMA table_info(vectors)").fetchall()
    return any(name == "checksum" for _, name, *_ in columns)


def _checksum(key: bytes, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(key))


def _identity(model: EmbeddingModel | Space | str) -> tuple[str, Space | None]:
    """What a model's vectors are filed under, and its space where that is known."""
    if isinstance(model, str):
        return model, None
    space = model if isinstance(model, Space) else model.space
    return space.id, space
