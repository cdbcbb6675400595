"""Counts how many of many numbers are different, in memory that does not grow with them."""

from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

PARTS = 64  # files, by the number's last bits: one is in memory at a time


class Repeats:
    """Numbers uint64, hashes say, that go to the disk as they come, 8 bytes each."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self._files: list[IO[bytes]] = [
            (path / str(number)).open("wb", buffering=1 << 14) for number in range(PARTS)
        ]
        self._distinct: int | None = None
        self.count = 0

    def add(self, numbers: NDArray[np.uint64]) -> None:
        self.count += len(numbers)
        part = numbers % np.uint64(PARTS)
        order = np.argsort(part, kind="stable")
        ordered, starts = numbers[order], np.searchsorted(part[order], np.arange(PARTS + 1))
        for number, file in enumerate(self._files):
            file.write(ordered[starts[number] : starts[number + 1]].tobytes())

    @property
    def distinct(self) -> int:
        """How many different numbers there are; no more can be added."""
        if self._distinct is None:
            self._distinct = 0
            for file in self._files:
                file.close()
                self._distinct += len(np.unique(np.fromfile(file.name, np.uint64)))
        return self._distinct

    def close(self) -> None:
        for file in self._files:
            file.close()
