"""Processes that do what damaged input may end: each does one task at a time, and if it dies, the task
fails that it died of, and no other.

A process has MEMORY_BYTES beside what it starts with, and TASK_SECONDS for a task; one that takes
longer is ended.

Not `concurrent.futures`: there one death fails all tasks, and each process runs the user's own script
again, which may have no guard around its main part.
"""

import json
import os
import pickle
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, Self, TypeVar

Result = TypeVar("Result")
MOST_PROCESSES = 8
MEMORY_BYTES = 2 << 30  # then it has a MemoryError; an image of 64 million pixels takes a third
TASK_SECONDS = 60.0  # the largest image that is read takes two
START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); " + (
    "from embedding_pipelines.pool import serve; serve()"
)
_SIZE = 8  # bytes of a message's length


class ProcessDied(Exception):
    """The process that did this task is gone: it crashed, the system ended it for its memory, or
    it took too long."""


class Pool:
    """Runs functions of modules in other processes; close it, or use it in a `with` block.

    As many processes as cores, each started when there is a task that no other one is free for.
    """

    def __init__(self, processes: int | None = None, task_seconds: float = TASK_SECONDS) -> None:
        self._task_seconds = task_seconds
        most = min(os.cpu_count() or 1, MOST_PROCESSES) if processes is None else processes
        self._most, self._idle = most, 0
        self._tasks: SimpleQueue[tuple[Future[Any], bytes] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._lock, self._closed = threading.Lock(), threading.Event()

    def submit(self, function: Callable[..., Result], *arguments: Any) -> "Future[Result]":
        """The result of `function(*arguments)`, or its exception; all of them can be pickled. OSError
        where the system starts no process."""
        future: Future[Result] = Future()
        message = pickle.dumps((function, arguments), pickle.HIGHEST_PROTOCOL)
        with self._lock:
            if self._closed.is_set():
                raise RuntimeError("The pool is closed.")
            if self._tasks.qsize() >= self._idle and len(self._threads) < self._most:
                thread = threading.Thread(target=self._work, name="pool", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._tasks.put((future, message))
        return future

    def close(self) -> None:
        """End the processes at once: a task that is under way has died, and those that have not
        begun are cancelled."""
        with self._lock:
            self._closed.set()
            for _ in self._threads:
                self._tasks.put(None)
            for process in self._processes:
                process.kill()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _work(self) -> None:
        process: subprocess.Popen[bytes] | None = None
        try:
            while True:
                self._count_idle(1)
                task = self._tasks.get()
                self._count_idle(-1)
                if task is None:
                    return
                future, message = task
                if self._closed.is_set():
                    future.cancel()
                elif future.set_running_or_notify_cancel():
                    try:
                        process = process or self._start()
                    except OSError as error:
                        future.set_exception(error)
                    else:
                        if not _run(process, message, future, self._task_seconds):
                            self._end(process)
                            process = None
                del task, future, message  # not held while there is nothing to do
        finally:
            if process is not None:
                self._end(process)

    def _start(self) -> "subprocess.Popen[bytes]":
        process = _start()
        with self._lock:
            self._processes.add(process)
            if self._closed.is_set():  # meanwhile
                process.kill()
        return process

    def _end(self, process: "subprocess.Popen[bytes]") -> None:
        with self._lock:
            self._processes.discard(process)
        _end(process)

    def _count_idle(self, change: int) -> None:
        with self._lock:
            self._idle += change


def _start() -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", START, json.dumps(sys.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # libraries of images write their warnings there
        start_new_session=True,  # who interrupts this process decides what becomes of the others
    )


def _run(
    process: "subprocess.Popen[bytes]", message: bytes, future: "Future[Any]", seconds: float
) -> bool:
    """Have a task done; whether the process lives on."""
    assert process.stdin is not None
    assert process.stdout is not None
    too_late = threading.Event()

    def give_up() -> None:
        too_late.set()
        process.kill()

    watch = threading.Timer(seconds, give_up)
    watch.daemon = True
    watch.start()
    try:
        _write(process.stdin, message)
        reply = _read(process.stdout)
    except (OSError, EOFError) as error:
        process.kill()
        words = f"its process died (exit status {process.wait()})"
        died = ProcessDied(f"it took more than {seconds:g} s" if too_late.is_set() else words)
        died.__cause__ = error
        future.set_exception(died)
        return False
    finally:
        watch.cancel()
    try:
        is_result, value = pickle.loads(reply)  # noqa: S301  # our own process
    except Exception as error:  # noqa: BLE001  # of an exception that cannot be made anew, say
        is_result, value = False, error
    if is_result:
        future.set_result(value)
    else:
        future.set_exception(value)
    return True


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:  # what was not yet written to it
                continue


def serve() -> None:
    """Do tasks as they come by the standard input, until it is closed."""
    _limit_memory()
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints does not stand between the replies
    while True:
        try:
            message = _read(source)
        except EOFError:
            return
        _write(target, _do(message))


def _limit_memory() -> None:
    """MEMORY_BYTES more than there are now, where the system keeps such a limit."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MEMORY_BYTES
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _do(message: bytes) -> bytes:
    try:
        function, arguments = pickle.loads(message)  # noqa: S301  # of the process that started this
        return pickle.dumps((True, function(*arguments)), pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # noqa: BLE001  # whoever asks for the result gets it
        return pickle.dumps((False, error), pickle.HIGHEST_PROTOCOL)


def _write(pipe: IO[bytes], message: bytes) -> None:
    pipe.write(len(message).to_bytes(_SIZE, "little"))
    pipe.write(message)
    pipe.flush()


def _read(pipe: IO[bytes]) -> bytes:
    size = int.from_bytes(_whole(pipe, _SIZE), "little")
    return _whole(pipe, size)


def _whole(pipe: IO[bytes], size: int) -> bytes:
    content = pipe.read(size)
    if len(content) < size:
        raise EOFError
    return content
