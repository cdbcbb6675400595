"""Processes for tasks: results and exceptions come back, and a death fails one task alone."""

import errno
import operator
import os
import subprocess
import sys
import time
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

from embedding_pipelines import pool as pool_module
from embedding_pipelines.images import ImageError, decode
from embedding_pipelines.pool import Pool, ProcessDied


def test_results_and_exceptions_come_back_and_a_death_fails_one_task() -> None:
    with Pool(1) as pool:
        before, dies, wrong, prints, after = (
            pool.submit(operator.add, 1, 2),
            pool.submit(os._exit, 9),
            pool.submit(decode, b"no image"),
            pool.submit(print, "not between the replies"),
            pool.submit(operator.add, 3, 4),
        )
        assert before.result() == 3
        with pytest.raises(ProcessDied, match=r"died \(exit status 9\)"):
            dies.result()
        with pytest.raises(ImageError, match="no image of a format"):
            wrong.result()
        assert prints.result() is None
        assert after.result() == 7
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(operator.add, 1, 2)


def test_what_takes_too_long_or_too_much_memory_fails_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, limits = pool_module._run, iter([0.2])  # of the first task; the others take what they take

    def limited(process: Any, message: bytes, future: Any, seconds: float) -> bool:
        return run(process, message, future, next(limits, seconds))

    monkeypatch.setattr(pool_module, "_run", limited)
    with Pool(1) as pool:
        slow, large, after = (
            pool.submit(time.sleep, 60),
            pool.submit(bytes, 3 << 30),
            pool.submit(operator.add, 3, 4),
        )
        with pytest.raises(ProcessDied, match=r"it took more than 0\.2 s"):
            slow.result()
        with pytest.raises(MemoryError):
            large.result()
        assert after.result() == 7


def test_what_has_not_begun_when_it_closes_is_cancelled() -> None:
    pool = Pool(1)
    first = pool.submit(operator.add, 1, 1)
    others = [pool.submit(operator.add, 1, number) for number in range(50)]
    pool.close()
    assert first.done()
    with pytest.raises(CancelledError):
        others[-1].result()


def test_it_closes_though_a_task_hangs() -> None:
    pool, started = Pool(1), time.monotonic()
    assert pool.submit(operator.add, 1, 2).result(30) == 3  # its process is there
    hangs, waits = pool.submit(time.sleep, 60), pool.submit(operator.add, 1, 2)
    while not hangs.running():
        time.sleep(0.01)
    pool.close()
    assert time.monotonic() - started < 30
    with pytest.raises(ProcessDied):
        hangs.result(0)
    with pytest.raises(CancelledError):
        waits.result(0)


def test_a_script_without_a_guard_is_not_run_again(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import operator\n"
        "from embedding_pipelines.pool import Pool\n"
        "with Pool(1) as pool:\n"
        "    print(pool.submit(operator.add, 1, 2).result())\n",
        encoding="utf-8",
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("3\n", "")


class Odd(Exception):
    """One that pickle cannot make anew, since it passes on less than it takes."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)


def raise_odd() -> None:
    raise Odd("first", "second")


def test_no_task_waits_for_ever_whatever_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    with Pool(1) as pool:
        odd, after = pool.submit(raise_odd), pool.submit(operator.add, 3, 4)
        with pytest.raises(TypeError):
            odd.result(30)
        assert after.result(30) == 7

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with Pool(1) as pool, monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", refuse)
        with pytest.raises(OSError, match="Too many open files"):
            pool.submit(operator.add, 1, 2).result(30)
        patch.undo()
        assert pool.submit(operator.add, 1, 2).result(30) == 3
