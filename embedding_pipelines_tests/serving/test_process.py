"""A server's process: one line when it is ready, and how it ends."""

import os
import signal
import subprocess
from pathlib import Path

import httpx2

from embedding_pipelines_tests.commands import EXECUTABLE


def test_one_line_says_where_it_is_ready_and_ctrl_c_ends_it(built_home: Path) -> None:
    environment = {**os.environ, "EMBEDDING_PIPELINES_HOME": str(built_home)}
    environment.pop("EMBEDDING_API_KEY", None)
    with subprocess.Popen(
        [EXECUTABLE, "serve", "--port", "0"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("Ready on http://127.0.0.1:")
        assert "listens on loopback only" in line
        assert httpx2.get(f"{line.split()[2]}/ready").status_code == 200
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "Stopped.\n")
