"""How long what comes now waits outside of the model's queue: for the event loop, and for the thread
that counts its tokens.

Where the model is fast, these are what a request waits for, and `Lanes` sees none of it: a backlog
stands in buffers of connections, which the event loop has yet to read, and before the thread. So the
wait of a request is a sum of three, each measured, none of them by a timer of the request's own:

- the lag of the event loop, on the way in and on the way out;
- what is before it at the thread, by the rate at which that is done while something is there;
- the tokens before it in its lane, by the model's rate (`Lanes.wait_seconds`).

Who waits for the network is not counted: that is not the server's time.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator

BEAT_SECONDS = 0.05  # between two looks at the lag of the event loop
MEMORY_SECONDS = 5.0  # of waiting, after which a measured rate counts half


class Lag:
    """How late the event loop does what is due; one task measures it for all requests."""

    def __init__(self) -> None:
        self._last, self._due = 0.0, float("inf")

    @property
    def seconds(self) -> float:
        """Of late; or of what is late now, if that is more."""
        return max(self._last, time.perf_counter() - self._due, 0.0)

    async def watch(self) -> None:
        """Measure until this is cancelled."""
        while True:
            self._due = time.perf_counter() + BEAT_SECONDS
            await asyncio.sleep(BEAT_SECONDS)
            self._last = time.perf_counter() - self._due


class Line:
    """What waits for one thread, first in, first out, in any unit; and how fast it goes."""

    def __init__(self) -> None:
        self.waiting = 0.0
        self._amount = self._seconds = 0.0  # of late, while something was there
        self._noted = 0.0  # when `_seconds` was counted last

    @property
    def wait_seconds(self) -> float:
        """0 before there is a rate."""
        return self.waiting * self._seconds / self._amount if self._amount else 0.0

    @contextlib.contextmanager
    def stand(self, amount: float) -> Iterator[None]:
        """From when it comes until its work is done; who leaves before that is not counted as
        done."""
        self._note()
        self.waiting += amount
        is_done = False
        try:
            yield
            is_done = True
        finally:
            self._note()
            self.waiting -= amount
            self._amount += amount * is_done

    def _note(self) -> None:
        now = time.perf_counter()
        if self.waiting:
            seconds = now - self._noted
            fading = 0.5 ** (seconds / MEMORY_SECONDS)
            self._amount, self._seconds = self._amount * fading, self._seconds * fading + seconds
        self._noted = now
