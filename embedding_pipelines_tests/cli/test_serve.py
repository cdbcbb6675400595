"""The command `serve`: what it refuses. What it starts is in `serving/test_process.py`."""

from pathlib import Path

import pytest

from embedding_pipelines_tests.commands import Command


def test_without_a_key_it_listens_on_loopback_only(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("EMBEDDING_API_KEY", raising=False)
    ended = Command(monkeypatch, capsys)("serve", "--host", "0.0.0.0")
    assert ended.code == 1
    assert "without a key" in ended.err
