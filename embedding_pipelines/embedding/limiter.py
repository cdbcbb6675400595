"""One pace for all requests with one key: every thread, run and pipeline of this machine keeps it.

Nobody is slowed down until the service says so. A refusal (429, 503) pauses everyone for as long as
it asks and lowers the pace by a share; each success raises it by a little (additive increase,
multiplicative decrease). What the user states of the account, requests and tokens per minute, holds
from the start. The state is a row of a small SQLite file; if that is lost or damaged, it is made
anew, and where none can be written each process keeps its own pace.
"""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

PAUSE_SECONDS = 1.0  # after a refusal that does not say how long
LONGEST_PAUSE_SECONDS = 600.0  # whatever a service asks for; then it is asked again
LOWEST_PACE = 0.1  # requests per second
LOWERED = 0.7  # the share of the pace that is left after a refusal
# Per second, as a share of the pace at which the last refusal came: back to NEAR of it within a
# second, then with care, and with less of it the longer no refusal comes.
GROWTH, CAREFUL_GROWTH, NEAR = 0.4, 0.04, 0.9
CARE_SECONDS = 10.0
FORGOTTEN_SECONDS = 600.0  # a pace that no refusal has confirmed for so long
LONGEST_GUESS = 6  # refusals in a row that double the pause of an unknown pace: up to 31 seconds
OBSERVED_SECONDS = (
    1.0  # what the service answered within them is its pace; a refusal within them lowers it once
)
BUSY_SECONDS = 60.0  # for another process, which takes less than a millisecond
CLOCK_SECONDS = 1.0  # by which a clock may be set back unnoticed


class Stopped(Exception):
    """Nobody waits for this request any more."""


@dataclass
class State:
    """The pace of one key, and what follows for it from what happens. Times are seconds since the
    epoch."""

    next_at: float = 0.0  # when the next request may go out
    tokens_at: float = 0.0  # when the account's tokens per minute allow it
    paused_until: float = 0.0
    pace: float = 0.0  # requests per second; 0: not limited
    ceiling: float = 0.0  # the pace before the last refusal
    lowered_at: float = 0.0
    window_start: float = 0.0
    window_successes: int = 0
    seen_at: float = 0.0  # when this was last looked at
    last_successes: int = 0  # of the window before, if it has only just ended
    refusals: int = 0  # in a row

    def look(self, now: float) -> None:
        """All times move with a clock that was set back: nobody waits until it is as late again."""
        back = self.seen_at - now
        if back > CLOCK_SECONDS:
            for name in ("next_at", "tokens_at", "paused_until", "lowered_at", "window_start"):
                setattr(self, name, getattr(self, name) - back)
        self.seen_at = now
        if self.pace and now - self.lowered_at > FORGOTTEN_SECONDS:
            self.pace = self.ceiling = 0.0

    def reserve(self, now: float, pace: float, token_seconds: float) -> float:
        """When a request may go out. `pace` is the stated one, `token_seconds` what its tokens take
        of theirs."""
        at = max(now, self.next_at, self.tokens_at, self.paused_until)
        self.next_at = at + 1 / min(pace for pace in (self.pace, pace, float("inf")) if pace)
        if token_seconds:
            self.tokens_at = at + token_seconds
        return at

    def succeed(self, now: float) -> None:
        if now - self.window_start > OBSERVED_SECONDS:
            self.last_successes = (
                self.window_successes if now - self.window_start < 2 * OBSERVED_SECONDS else 0
            )
            self.window_start, self.window_successes = now, 0
        self.window_successes += 1
        self.refusals = 0
        if self.pace:
            bold = 1 + ((now - self.lowered_at) / CARE_SECONDS) ** 2
            growth = GROWTH if self.pace < NEAR * self.ceiling else CAREFUL_GROWTH * bold
            self.pace += (
                growth * self.ceiling / self.pace
            )  # of each of `pace` successes in a second

    def refuse(self, now: float, sent_at: float, pause: float) -> bool:
        """A request that went out at `sent_at` was told to come later; whether that was news."""
        answered = max(
            self.window_successes, self.last_successes
        )  # a window may have begun just now
        if (
            not self.pace and not answered
        ):  # nobody knows what it can do: it is asked again, ever more seldom
            news = now >= self.paused_until
            self.refusals += news
            pause = max(pause, 0.5 * (2 ** min(self.refusals - 1, LONGEST_GUESS) - 1))
            self.paused_until = max(self.paused_until, now + pause)
            return news
        self.paused_until = max(self.paused_until, now + pause)
        if sent_at <= self.lowered_at + OBSERVED_SECONDS:
            return False  # it went out at the pace of before, or before the one of now could show
        self.ceiling = self.pace or max(1.0, answered / OBSERVED_SECONDS)
        self.pace = max(LOWEST_PACE, LOWERED * self.ceiling)
        self.lowered_at = now
        self.next_at = min(
            self.next_at, now + 1 / self.pace
        )  # who has a turn already gets another one
        return True


COLUMNS = list(State.__dataclass_fields__)


class Limiter:
    """The pace of one key. Safe for threads and processes."""

    def __init__(
        self,
        path: Path,
        key: str,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
    ) -> None:
        self._path, self._key, self._lock = path, key, threading.Lock()
        self._pace, self._tokens = (requests_per_minute or 0) / 60, (tokens_per_minute or 0) / 60
        self._database, self._file = _opened(path)

    def wait(self, tokens: int, stop: threading.Event) -> float:
        """Wait for the turn of a request of so many tokens; the seconds waited. Raises Stopped when
        `stop` is set."""
        started, token_seconds = time.monotonic(), tokens / self._tokens if self._tokens else 0.0
        while True:
            with self._state() as state:
                at = state.reserve(state.seen_at, self._pace, token_seconds)
                seconds, lowered_at = at - state.seen_at, state.lowered_at
            if stop.wait(max(0.0, seconds)):
                raise Stopped
            with self._state() as state:  # a refusal of another request while this one waited
                if state.paused_until <= state.seen_at and state.lowered_at == lowered_at:
                    return time.monotonic() - started
                state.tokens_at -= token_seconds  # its turn is past: it gets another one

    def succeeded(self) -> None:
        with self._state() as state:
            state.succeed(state.seen_at)

    def refused(self, sent_at: float, retry_after_seconds: float | None) -> bool:
        """A request that went out at `sent_at` (seconds since the epoch) was told to come later;
        whether that is news to all who share the key."""
        pause = (
            PAUSE_SECONDS
            if retry_after_seconds is None
            else min(retry_after_seconds, LONGEST_PAUSE_SECONDS)
        )
        with self._state() as state:
            return state.refuse(state.seen_at, sent_at, pause)

    def pace(self) -> float:
        """Requests per second that are let through now; 0: as many as come."""
        with self._state() as state:
            return state.pace

    def close(self) -> None:
        with self._lock:
            self._database.close()

    @contextlib.contextmanager
    def _state(self) -> Iterator[State]:
        """The row of this key as of now, read and written back in one transaction."""
        with self._lock:
            state = self._begun()
            try:
                state.look(time.time())
                yield state
                marks = ", ".join("?" * (len(COLUMNS) + 1))
                values = [self._key, *vars(state).values()]
                self._database.execute(
                    f"INSERT OR REPLACE INTO pace (key, {', '.join(COLUMNS)}) VALUES ({marks})",
                    values,
                )
                self._database.execute("COMMIT")
            except BaseException:
                self._database.execute("ROLLBACK")
                raise

    def _begun(self) -> State:
        """The row of this key, in a transaction. A file that is gone or cannot be read is made
        anew."""
        if self._file and self._file != _inode(self._path):
            self._reopen()
        try:
            return self._read()
        except sqlite3.DatabaseError as error:
            if _is_busy(error):
                raise
            self._reopen()
            return self._read()

    def _reopen(self) -> None:
        self._database.close()
        self._database, self._file = _opened(self._path)

    def _read(self) -> State:
        self._database.execute("BEGIN IMMEDIATE")
        row = self._database.execute(
            f"SELECT {', '.join(COLUMNS)} FROM pace WHERE key = ?", [self._key]
        ).fetchone()
        return State(*row) if row else State()


def _opened(path: Path) -> tuple[sqlite3.Connection, int]:
    """The database and its file's inode; made anew if it is damaged, in memory and 0 where none can
    be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f"{path.name}.lock")):
            try:
                database = _connected(str(path))
            except sqlite3.DatabaseError as error:
                if _is_busy(error):
                    raise
                for ending in ("", "-wal", "-shm"):
                    path.with_name(path.name + ending).unlink(missing_ok=True)
                database = _connected(str(path))
            return database, _inode(path)
    except (sqlite3.DatabaseError, OSError):
        return _connected(":memory:"), 0


def _connected(name: str) -> sqlite3.Connection:
    """A database with the table `pace`. Raises sqlite3.DatabaseError if it cannot be read or
    written."""
    database = sqlite3.connect(
        name, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = OFF")  # lost in a power cut, it is learned anew
        database.execute("BEGIN IMMEDIATE")
        columns = ", ".join(f"{name} REAL NOT NULL" for name in COLUMNS)
        database.execute(f"CREATE TABLE IF NOT EXISTS pace (key TEXT PRIMARY KEY, {columns})")
        database.execute(
            f"SELECT {', '.join(COLUMNS)} FROM pace"
        ).fetchone()  # as another release may have made it
        if database.execute("PRAGMA integrity_check").fetchone() != ("ok",):
            raise sqlite3.DatabaseError(f"{name} is damaged")
        database.execute("COMMIT")
    except BaseException:
        database.close()
        raise
    return database


def _is_busy(error: sqlite3.DatabaseError) -> bool:
    """Whether another process holds the file, which is then in order."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0
