"""Time and memory of a command are its own: neither less, nor the memory of whoever asks."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.measure import Measured, measure

ROOT = Path(__file__).parents[2]
MB = 1_000_000
HOLD = "import time; held = b'x' * {bytes}; time.sleep({seconds})"


def run(code: str, logs: Path) -> Measured:
    return measure([sys.executable, "-c", code], os.environ, logs / "run")


def test_time_and_peak_are_those_of_the_command(tmp_path: Path) -> None:
    found = run(HOLD.format(bytes=200 * MB, seconds=0.5), tmp_path)
    assert found.code == 0
    assert 0.5 <= found.seconds < 30
    assert 200 * MB < found.peak_bytes < 300 * MB


def test_a_short_peak_is_not_missed(tmp_path: Path) -> None:
    assert run("held = b'x' * 200_000_000; del held", tmp_path).peak_bytes > 200 * MB


def test_the_memory_of_the_measuring_process_is_not_counted(tmp_path: Path) -> None:
    ballast = b"x" * (400 * MB)
    found = run("pass", tmp_path)
    assert len(ballast) == 400 * MB
    assert found.peak_bytes < 100 * MB


def test_children_count_together_with_their_parent(tmp_path: Path) -> None:
    child = HOLD.format(bytes=150 * MB, seconds=2)
    code = f"import subprocess, sys; held = b'x' * {150 * MB}; subprocess.run([sys.executable, '-c', {child!r}])"
    assert run(code, tmp_path).peak_bytes > 300 * MB


def test_processor_time_is_not_wall_time(tmp_path: Path) -> None:
    found = run("import time; time.sleep(1)", tmp_path)
    assert found.cpu_seconds < found.seconds


@pytest.mark.parametrize(
    ("code", "expected"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -9)]
)
def test_how_it_ended_is_reported(code: str, expected: int, tmp_path: Path) -> None:
    assert run(code, tmp_path).code == expected


def test_who_stops_the_benchmark_stops_what_is_measured(tmp_path: Path) -> None:
    mark = tmp_path / "started"
    child = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(300)"
    code = (
        "import os, sys; from pathlib import Path; from benchmarks.measure import measure;"
        f"measure([sys.executable, '-c', {child!r}], os.environ, Path({str(tmp_path)!r}) / 'run')"
    )
    benchmark = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, cwd=ROOT)
    while not (mark.exists() and mark.read_text()):
        time.sleep(0.05)
    benchmark.send_signal(signal.SIGINT)
    assert benchmark.wait(timeout=60) != 0
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(mark.read_text())).wait(
            timeout=30
        )  # killed; whoever has inherited it takes its time


def test_what_it_printed_is_kept(tmp_path: Path) -> None:
    found = run("import sys; print('result'); print('complaint', file=sys.stderr)", tmp_path)
    assert (found.stdout.strip(), found.stderr.strip()) == ("result", "complaint")
    assert (tmp_path / "run.out").read_text().strip() == "result"
