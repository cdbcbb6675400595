"""Runs rows through a backend, some batches at a time, and makes them smaller where its memory ends."""

import logging
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

from embedding_pipelines.errors import ProviderError
from embedding_pipelines.inference.backend import Array, Backend, OutOfMemory, Rows
from embedding_pipelines.vectors import Vectors

log = logging.getLogger(__name__)


class Batching:
    """What one model learns of the memory of its device.

    `name` is the model's, `unit` what batches are measured in, and `alone` says what a single
    row of some size is, and what to do where there is no room for it.
    """

    def __init__(self, name: str, unit: str, alone: Callable[[int], tuple[str, str]]) -> None:
        self._name, self._unit, self._alone = name, unit, alone
        # Lowered where a device runs out of memory.
        self._most = self._most_in_flight = sys.maxsize

    def batch_size(self, backend: Backend) -> int:
        """Per batch, padding included: the backend's number, or less if its memory is too small."""
        return min(backend.batch_tokens, self._most)

    def in_flight(self, backend: Backend) -> int:
        """Batches to start before the first is finished."""
        return min(backend.in_flight, self._most_in_flight)

    def busy_size(self, backend: Backend) -> int:
        """What keeps the backend busy: two batches for each that it computes at a time (one more is
        in flight). With three on two streams one would idle for a quarter of the time."""
        return self.batch_size(backend) * max(1, 2 * (self.in_flight(backend) - 1))

    def compute(
        self,
        rows: Rows,
        vectors: Vectors,
        backend: Backend,
        group: Callable[[Array, int], list[Array]],
    ) -> None:
        """Fill `vectors` float32[n, d]; `group` makes batches of rows' lengths and the batch size.

        A batch without room on the device is repeated alone, then in halves. Raises ProviderError
        for a single row without room.
        """
        waiting = deque(group(rows.lengths, self.batch_size(backend)))
        running: deque[tuple[Any, Array]] = deque()
        while waiting or running:
            try:
                if waiting and len(running) < self.in_flight(backend):
                    part = waiting.popleft()
                    running.append((backend.start(rows.take(part)), part))
                else:
                    handle, part = running.popleft()
                    vectors[part] = backend.finish(handle)
            except OutOfMemory as error:
                is_alone = self.in_flight(backend) == 1 and not running
                self._most_in_flight = 1
                if is_alone:
                    waiting.extendleft(self._halve(part, rows.lengths[part], backend, error))
                else:
                    waiting.appendleft(part)

    def _halve(
        self, part: Array, lengths: Array, backend: Backend, error: OutOfMemory
    ) -> list[Array]:
        """Halve a batch that has no room even alone; later batches are as small from the start."""
        longest = int(lengths.max())
        if len(part) == 1:
            what, remedy = self._alone(longest)
            raise ProviderError(
                f"{self._name}: no memory for {what} on {backend.name}: {error} {remedy}"
            ) from error
        size = len(part) * longest if backend.pads else int(lengths.sum())
        if size <= self.batch_size(backend):  # else the limit is already lower
            self._most = size // 2
            log.warning(
                "%s: out of memory on %s; from now on %d %s at a time",
                *(self._name, backend.name, self._most, self._unit),
            )
        middle = len(part) // 2
        return [part[middle:], part[:middle]]
