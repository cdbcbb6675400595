"""Tasks run side by side, in order; one that never ends holds nobody up."""

import subprocess
import sys
import threading
import time
from concurrent.futures import wait

import pytest

from embedding_pipelines.embedding.workers import Workers, is_busy


def test_calls_are_taken_in_order_by_as_many_threads_as_asked_for() -> None:
    begun: list[int] = []
    both = threading.Barrier(2, timeout=30)

    def call(number: int) -> int:
        begun.append(number)
        both.wait()  # passes only if two run at the same time
        return number * 2

    workers = Workers(2)
    replies = [workers.submit(call, number) for number in range(6)]
    assert [reply.result(30) for reply in replies] == [0, 2, 4, 6, 8, 10]
    assert sorted(begun) == list(range(6))
    workers.close()
    assert not is_busy()


def test_an_error_is_the_callers_and_the_thread_goes_on() -> None:
    workers = Workers(1)

    def fail() -> None:
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        workers.submit(fail).result(30)
    assert workers.submit(len, "abc").result(30) == 3
    workers.close()


def test_what_is_cancelled_before_its_turn_is_not_called() -> None:
    workers, go, called = Workers(1), threading.Event(), []
    first, second = workers.submit(go.wait, 30), workers.submit(called.append, 1)
    assert second.cancel()
    go.set()
    wait([first], 30)
    workers.close()
    assert not is_busy()
    assert called == []


def test_a_process_ends_though_a_call_does_not() -> None:
    code = (
        "import threading, time; from embedding_pipelines.embedding.workers import Workers, is_busy\n"
        "workers, begun = Workers(1), threading.Event()\n"
        "workers.submit(begun.set), workers.submit(time.sleep, 600)\n"
        "begun.wait(), workers.close(), print(is_busy())"
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["True"]
    assert time.monotonic() - started < 30
