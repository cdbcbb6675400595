"""One pace for all requests with one key: every thread, run and pipeline of this machine keeps it.

Nobody is slowed down until the service says so. A refusal (429, 503) pauses everyone for as long as it asks and
lowers the pace by a share; each success raises it by a little (additive increase, multiplicative decrease). What the
user states of the account, requests and tokens per minute, holds from the start. The state is a row of a small
SQLite file.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PAUSE_SECONDS = 1.0  # after a refusal that does not say how long
LONGEST_PAUSE_SECONDS = 600.0  # whatever a service asks for; then it is asked again
LOWEST_PACE = 1 / 60  # requests per second
LOWERED = 0.7  # the share of the pace that is left after a refusal
# Per second, as a share of the pace at which the last refusal came: back to NEAR of it within a second, then with care.
GROWTH, CAREFUL_GROWTH, NEAR = 0.4, 0.04, 0.9
OBSERVED_SECONDS = 1.0  # what the service answered within them is its pace; a refusal within them lowers it once
BUSY_SECONDS = 60.0  # for another process, which takes less than a millisecond


class Stopped(Exception):
    """Nobody waits for this request any more."""


@dataclass
class _State:
    next_at: float = 0.0  # seconds since the epoch: when the next request may go out
    tokens_at: float = 0.0  # when the account's tokens per minute allow it
    paused_until: float = 0.0
    pace: float = 0.0  # requests per second; 0: not limited
    ceiling: float = 0.0  # the pace before the last refusal
    lowered_at: float = 0.0
    window_start: float = 0.0
    window_successes: int = 0


COLUMNS = list(_State.__dataclass_fields__)


class Limiter:
    """The pace of one key. Safe for threads and processes."""

    def __init__(
        self, path: Path, key: str, requests_per_minute: float | None = None, tokens_per_minute: float | None = None
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._key, self._lock = key, threading.Lock()
        self._pace, self._tokens = (requests_per_minute or 0) / 60, (tokens_per_minute or 0) / 60
        self._database = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = OFF")  # lost in a power cut, it is learned anew
        columns = ", ".join(f"{name} REAL NOT NULL" for name in COLUMNS)
        self._database.execute(f"CREATE TABLE IF NOT EXISTS pace (key TEXT PRIMARY KEY, {columns})")

    def wait(self, tokens: int, stop: threading.Event) -> float:
        """Wait for the turn of a request of so many tokens; the seconds waited. Raises Stopped when `stop` is set."""
        started = time.time()
        while True:
            with self._state() as state:
                at = max(time.time(), state.next_at, state.tokens_at, state.paused_until)
                pace = min(pace for pace in (state.pace, self._pace, float("inf")) if pace)
                state.next_at = at + 1 / pace
                if self._tokens:
                    state.tokens_at = at + tokens / self._tokens
            if stop.wait(max(0.0, at - time.time())):
                raise Stopped
            with self._state() as state:  # a refusal of another request while this one waited
                if state.paused_until <= time.time():
                    return time.time() - started

    def succeeded(self) -> None:
        with self._state() as state:
            now = time.time()
            if now - state.window_start > OBSERVED_SECONDS:
                state.window_start, state.window_successes = now, 0
            state.window_successes += 1
            if state.pace:
                growth = GROWTH if state.pace < NEAR * state.ceiling else CAREFUL_GROWTH
                state.pace += growth * state.ceiling / state.pace  # of each of `pace` successes in a second

    def refused(self, sent_at: float, retry_after_seconds: float | None) -> None:
        """A request that went out at `sent_at` (seconds since the epoch) was told to come later."""
        pause = PAUSE_SECONDS if retry_after_seconds is None else min(retry_after_seconds, LONGEST_PAUSE_SECONDS)
        with self._state() as state:
            now = time.time()
            state.paused_until = max(state.paused_until, now + pause)
            if sent_at <= state.lowered_at + OBSERVED_SECONDS:
                return  # it went out at the pace of before, or before the one of now could show
            state.ceiling = state.pace or max(1.0, state.window_successes / OBSERVED_SECONDS)
            state.pace = max(LOWEST_PACE, LOWERED * state.ceiling)
            state.lowered_at = now
            state.next_at = 0.0

    def pace(self) -> float:
        """Requests per second that are let through now; 0: as many as come."""
        with self._state() as state:
            return state.pace

    @contextmanager
    def _state(self) -> Iterator[_State]:
        """The row of this key, read and written back in one transaction."""
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                names = ", ".join(COLUMNS)
                row = self._database.execute(f"SELECT {names} FROM pace WHERE key = ?", [self._key]).fetchone()
                state = _State(*row) if row else _State()
                yield state
                marks = ", ".join("?" * (len(COLUMNS) + 1))
                values = [self._key, *vars(state).values()]
                self._database.execute(f"INSERT OR REPLACE INTO pace (key, {names}) VALUES ({marks})", values)
                self._database.execute("COMMIT")
            except BaseException:
                self._database.execute("ROLLBACK")
                raise

    def close(self) -> None:
        with self._lock:
            self._database.close()
