"""The command `serve`: what it refuses. What it starts is in `serving/test_process.py`."""

import socket
from pathlib import Path
from typing import Any

import pytest

from embedding_pipelines.serving import process
from embedding_pipelines_tests.commands import Command


def test_without_a_key_it_listens_on_loopback_only(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("EMBEDDING_API_KEY", raising=False)
    ended = Command(monkeypatch, capsys)("serve", "--host", "0.0.0.0")
    assert ended.code == 1
    assert "without a key" in ended.err


def test_an_output_that_is_allowed_is_a_bucket(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = Command(monkeypatch, capsys)("serve", "--output", "out/")
    assert (ended.code, "`--output` is 'out/', which is no bucket." in ended.err) == (2, True)


@pytest.mark.parametrize("as_json", [False, True])
def test_it_says_where_it_is_ready_whatever_form_the_end_has(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    class Process:
        def __init__(self, server: object, host: str, port: int, on_ready: Any, **_: Any) -> None:
            self._on_ready = on_ready

        def run(self) -> None:
            self._on_ready("http://127.0.0.1:1")

    monkeypatch.setattr(process, "Process", Process)
    ended = Command(monkeypatch, capsys)("serve", "--port", "0", *(["--json"] if as_json else []))
    assert ended.code == 0
    assert "Ready on http://127.0.0.1:1" in (ended.err if as_json else ended.out)


def test_it_says_what_is_not_ready_and_why(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Process:
        def __init__(self, server: Any, host: str, port: int, on_ready: Any, **_: Any) -> None:
            self._server, self._on_ready = server, on_ready

        def run(self) -> None:
            self._server.problems = {"notes": "Its model is trained by the first run."}
            self._on_ready("http://127.0.0.1:1")

    monkeypatch.setattr(process, "Process", Process)
    ended = Command(monkeypatch, capsys)("serve", "--port", "0")
    assert "Not ready: notes: Its model is trained by the first run." in ended.out


def test_a_port_that_is_in_use_is_a_sentence(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ended = Command(monkeypatch, capsys)("serve", "--port", str(port))
    assert ended.code == 1
    assert f"--port {port}: nothing can listen there: Address already in use." in ended.err
    assert "--port 0 takes any port" in ended.err
