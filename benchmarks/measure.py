"""Runs one command and says how long it took and how much memory: wall time from start to end, peak
of its tree.

The command is started by a small process of its own, which is this file run as a script. Linux
counts the memory of the process that starts another one into the other's peak until it has its own
program, so a benchmark that holds a gigabyte would find a gigabyte in everything it measures.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = (
    0.2  # between looks at the tree; the peak of the process itself is exact, from the kernel
)
TAIL = 4_000  # characters of what the command printed to stderr that a failure shows


@dataclass(frozen=True)
class Measured:
    """What one run of a command took."""

    code: int
    seconds: float  # wall, from before the process is started until it has ended
    cpu_seconds: float  # user and system, of the process and of its children
    peak_bytes: (
        int  # resident: the larger of the process's own peak and the largest sum over its tree
    )
    stdout: str
    stderr: str


def measure(command: Sequence[str], environment: Mapping[str, str], logs: Path) -> Measured:
    """Run `command` to its end. What it prints stands in `logs` (`.out`, `.err`) and in the
    answer."""
    logs.parent.mkdir(parents=True, exist_ok=True)
    out, err, result = (
        logs.with_name(f"{logs.name}.{ending}") for ending in ("out", "err", "json")
    )
    result.unlink(missing_ok=True)
    # -P: this folder's modules do not stand in front of the standard library's.
    starter = [sys.executable, "-P", __file__, str(result), str(out), str(err)]
    process = subprocess.Popen([*starter, *command], env=dict(environment))
    try:
        code = process.wait()
    except BaseException:
        _end(process.pid)  # whoever stops the benchmark does not want the rest of it to go on
        raise
    if code:
        raise RuntimeError(f"The measuring process for {command[0]} ended with exit code {code}.")
    figures = json.loads(result.read_text())
    return Measured(
        **figures,
        stdout=out.read_text(errors="replace"),
        stderr=err.read_text(errors="replace")[-TAIL:],
    )


def _end(pid: int) -> None:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        starter = psutil.Process(pid)
        for process in [*starter.children(recursive=True), starter]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _main(result: str, out: str, err: str, *command: str) -> None:
    with open(out, "wb") as stdout, open(err, "wb") as stderr:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
        tree = _Tree(process.pid)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1_024
    figures = {
        "code": process.returncode,
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": max(tree.end(), usage.ru_maxrss * unit),
    }
    Path(result).write_text(json.dumps(figures))


class _Tree:
    """Looks at a process and all below it now and then, and keeps the largest sum of resident
    memory."""

    def __init__(self, pid: int) -> None:
        self._pid, self._peak, self._over = pid, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> int:
        self._over.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        import psutil

        while not self._over.wait(SAMPLE_SECONDS):
            try:
                process = psutil.Process(self._pid)
                members = [process, *process.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            total = 0
            for member in members:
                try:
                    total += member.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self._peak = max(self._peak, total)


if __name__ == "__main__":
    _main(*sys.argv[1:])
