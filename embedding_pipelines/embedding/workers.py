"""Threads that make requests. A request that never ends does not keep the process from ending."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

Result = TypeVar("Result")

NAME = "provider-request"


class Workers:
    """`number` threads that take tasks in order. Daemons, unlike those of `concurrent.futures`."""

    def __init__(self, number: int) -> None:
        self._tasks: SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None] = (
            SimpleQueue()
        )
        self._threads = [
            threading.Thread(target=self._work, name=NAME, daemon=True) for _ in range(number)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        future: Future[Result] = Future()
        self._tasks.put((future, function, arguments))
        return future

    def close(self) -> None:
        """Take no more tasks; each thread ends with the one at which it is."""
        for _ in self._threads:
            self._tasks.put(None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, function, arguments = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function(*arguments))
            except BaseException as error:  # noqa: BLE001  # whoever asks for the result gets it
                future.set_exception(error)
            del task, future, arguments  # not held while there is nothing to do


def is_busy() -> bool:
    """Whether a request is out that nobody waits for any more; threads without one end
    meanwhile."""
    threads = [thread for thread in threading.enumerate() if thread.name == NAME]
    for thread in threads:
        thread.join(1)
    return any(thread.is_alive() for thread in threads)
