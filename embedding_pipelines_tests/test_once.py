"""`once`: one value for all threads, kept per object until it is forgotten."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from embedding_pipelines.once import forget, once


class Counter:
    def __init__(self, fails: int = 0) -> None:
        self.calls, self.fails = 0, fails

    @once
    def value(self) -> int:
        """How often it was made."""
        self.calls += 1
        time.sleep(0.02)
        if self.calls <= self.fails:
            raise ValueError("not yet")
        return self.calls

    @once
    def twice(self) -> int:
        return 2 * self.value


def test_threads_that_ask_at_once_get_one_value() -> None:
    first, second = Counter(), Counter()
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda counter: counter.value, [first, second] * 8)) == {1}
        assert set(pool.map(lambda counter: counter.twice, [first, second] * 8)) == {2}
    assert (first.calls, second.calls) == (1, 1)


def test_what_is_forgotten_is_made_anew_and_what_fails_is_tried_again() -> None:
    counter = Counter(fails=1)
    with pytest.raises(ValueError, match="not yet"):
        _ = counter.value
    assert counter.value == 2
    forget(counter, "value", "twice")
    assert (counter.value, counter.twice) == (3, 6)
    assert Counter.value.__doc__ == "How often it was made."
