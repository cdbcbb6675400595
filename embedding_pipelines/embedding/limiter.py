"""One pace for all requests with one key: every thread, run and pipeline of this machine keeps it.

Nobody is slowed down until the service says so. A refusal (429, 503) pauses everyone for as long as
it asks and lowers the pace by a share; each success raises it by a little (additive increase,
multiplicative decrease). What the user states of the account, requests and tokens per minute, holds
from the start. The state is a small JSON file behind a file lock. If it is lost or damaged, the
pace is learned again; where none can be written, each process keeps its own pace.
"""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

PAUSE_SECONDS = 1.0  # after a refusal that does not say how long
LONGEST_PAUSE_SECONDS = 600.0  # whatever a service asks for; then it is asked again
LOWEST_PACE = 0.1  # requests per second
DECREASE = 0.7  # the share of the pace that is left after a refusal
# Per second, as a share of the pace at which the last refusal came: back to NEAR of it within a
# second, then with care, and with less of it the longer no refusal comes.
GROWTH, CAREFUL_GROWTH, NEAR = 0.4, 0.04, 0.9
CARE_SECONDS = 10.0
FORGET_SECONDS = 600.0  # a pace that no refusal has confirmed for so long
LONGEST_GUESS = 6  # refusals in a row that double the pause of an unknown pace: up to 31 seconds
# What the service answered within them is its pace; a refusal within them lowers it once.
WINDOW_SECONDS = 1.0
LOCK_SECONDS = 10.0  # for another process, which takes less than a millisecond
POLL_SECONDS = 0.001
FILE_BYTES = 1_024  # always the same, so that one write replaces all that was there
CLOCK_SECONDS = 1.0  # by which a clock may be set back unnoticed


class Cancelled(Exception):
    """The caller cancelled this request."""


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
        """If the clock was set back, shift all times with it, so that nobody waits for the old one."""
        back = self.seen_at - now
        if back > CLOCK_SECONDS:
            for name in ("next_at", "tokens_at", "paused_until", "lowered_at", "window_start"):
                setattr(self, name, getattr(self, name) - back)
        self.seen_at = now
        if self.pace and now - self.lowered_at > FORGET_SECONDS:
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
        age = now - self.window_start
        if age > WINDOW_SECONDS:
            self.last_successes = self.window_successes if age < 2 * WINDOW_SECONDS else 0
            self.window_start, self.window_successes = now, 0
        self.window_successes += 1
        self.refusals = 0
        if self.pace:
            bold = 1 + ((now - self.lowered_at) / CARE_SECONDS) ** 2
            growth = GROWTH if self.pace < NEAR * self.ceiling else CAREFUL_GROWTH * bold
            # There are `pace` successes in a second; together they add `growth` of the ceiling.
            self.pace += growth * self.ceiling / self.pace

    def refuse(self, now: float, sent_at: float, pause: float) -> bool:
        """Record a 429 or 503 to a request sent at `sent_at`; whether it is new."""
        # A window may have begun just now.
        successes = max(self.window_successes, self.last_successes)
        if not self.pace and not successes:
            # Nobody knows what it can do: it gets requests again, ever more seldom.
            news = now >= self.paused_until
            self.refusals += news
            pause = max(pause, 0.5 * (2 ** min(self.refusals - 1, LONGEST_GUESS) - 1))
            self.paused_until = max(self.paused_until, now + pause)
            return news
        self.paused_until = max(self.paused_until, now + pause)
        if sent_at <= self.lowered_at + WINDOW_SECONDS:
            return False  # it went out at the pace of before, or before the one of now could show
        self.ceiling = self.pace or max(1.0, successes / WINDOW_SECONDS)
        self.pace = max(LOWEST_PACE, DECREASE * self.ceiling)
        self.lowered_at = now
        # Whoever has a slot already gets another one.
        self.next_at = min(self.next_at, now + 1 / self.pace)
        return True


_STATE = TypeAdapter(State)


class Limiter:
    """The pace of one key, in a file of its own. Safe for threads and processes."""

    def __init__(
        self,
        path: Path,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
    ) -> None:
        self._path, self._threads = path, threading.Lock()
        self._processes = FileLock(
            path.with_suffix(".lock"),
            timeout=LOCK_SECONDS,
            poll_interval=POLL_SECONDS,
            thread_local=False,
        )
        self._own: State | None = None  # of this process alone, where no file can be written
        self._pace, self._tokens = (requests_per_minute or 0) / 60, (tokens_per_minute or 0) / 60

    def wait(self, tokens: int, stop: threading.Event) -> float:
        """Wait for the slot of a request of so many tokens; the seconds waited.

        Raises Cancelled when `stop` is set.
        """
        started = time.monotonic()
        while True:
            seconds, lowered_at = self.reserve(tokens)
            if stop.wait(max(0.0, seconds)):
                raise Cancelled
            if self.confirm(tokens, lowered_at):
                return time.monotonic() - started

    def reserve(self, tokens: int) -> tuple[float, float]:
        """A slot for a request of so many tokens: the seconds until it comes, and what `confirm`
        is given then."""
        with self._state() as state:
            at = state.reserve(state.seen_at, self._pace, self._token_seconds(tokens))
            return at - state.seen_at, state.lowered_at

    def confirm(self, tokens: int, lowered_at: float) -> bool:
        """Whether a slot that has come may be used; not after a refusal of another request while
        this one waited."""
        with self._state() as state:
            if state.paused_until <= state.seen_at and state.lowered_at == lowered_at:
                return True
            state.tokens_at -= self._token_seconds(tokens)  # its slot is past: it gets another one
            return False

    def _token_seconds(self, tokens: int) -> float:
        return tokens / self._tokens if self._tokens else 0.0

    def record_success(self) -> None:
        with self._state() as state:
            state.succeed(state.seen_at)

    def record_refusal(self, sent_at: float, retry_after_seconds: float | None) -> bool:
        """Record a 429 or 503 to a request sent at `sent_at`, in seconds since the epoch; whether
        it is new to all who share the key."""
        pause = PAUSE_SECONDS if retry_after_seconds is None else retry_after_seconds
        with self._state() as state:
            return state.refuse(state.seen_at, sent_at, min(pause, LONGEST_PAUSE_SECONDS))

    def pace(self) -> float:
        """Requests per second that are let through now; 0: as many as come."""
        with self._state() as state:
            return state.pace

    @contextlib.contextmanager
    def _state(self) -> Iterator[State]:
        """The state as of now, for this thread alone; what the body makes of it is written."""
        with self._threads, contextlib.ExitStack() as stack:
            state = self._own or self._locked(stack)
            state.look(time.time())
            yield state
            if not self._own:
                self._write(state)

    def _locked(self, stack: contextlib.ExitStack) -> State:
        """What the file holds, while `stack` holds its lock; a new state if it is missing or
        damaged."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(self._processes)
            return _STATE.validate_json(self._path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return State()
        except OSError:  # from now on this process goes alone
            self._own = State()
            return self._own

    def _write(self, state: State) -> None:
        """Over the old content, in one call: to replace the file would make some file systems wait
        for the disk. After a power cut it may be damaged, and the pace is learned again."""
        content = json.dumps(vars(state)).ljust(FILE_BYTES).encode()
        try:
            with self._path.open("r+b" if self._path.exists() else "wb") as file:
                file.write(content)
                file.truncate()
        except OSError:
            self._own = state
