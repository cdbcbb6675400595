"""A server's process: one line when it is ready, and how it ends."""

import contextlib
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


def test_sigterm_says_so_first_and_loses_no_request(built_home: Path) -> None:
    """While `/ready` says 503, requests are still answered, on connections that then close."""
    with subprocess.Popen(
        [EXECUTABLE, "serve", "--port", "0"],
        env={**os.environ, "EMBEDDING_PIPELINES_HOME": str(built_home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[2]
        body = {"model": "things", "input": "red fox"}
        with httpx2.Client() as client:
            assert client.post(f"{address}/v1/embeddings", json=body).status_code == 200
            process.send_signal(signal.SIGTERM)
            statuses, closed = list[int](), list[bool]()
            with contextlib.suppress(httpx2.ConnectError):
                while True:
                    ready = httpx2.get(f"{address}/ready").status_code
                    reply = client.post(f"{address}/v1/embeddings", json=body)
                    if ready == 503:
                        statuses.append(reply.status_code)
                        closed.append(reply.headers.get("connection") == "close")
        out, err = process.communicate(timeout=30)
    assert set(statuses) == {200}  # at least one: how many fit three seconds is the machine's
    assert all(closed)
    assert (process.returncode, out, err) == (0, "", "")
