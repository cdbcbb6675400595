"""Calls the command line: in this process, or as the real command in a process of its own."""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from embedding_pipelines.cli.main import main

EXECUTABLE = str(Path(sys.executable).with_name("embedding-pipelines"))


class Said(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def envelope(self) -> dict[str, Any]:
        """What `--json` printed, which has the same shape for every command."""
        return check_envelope(self.out)

    @property
    def results(self) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = self.envelope["results"]
        return results

    @property
    def errors(self) -> list[str]:
        return [entry["error"] for entry in self.envelope["errors"]]


def check_envelope(text: str) -> dict[str, Any]:
    """The one object that a command printed."""
    value: dict[str, Any] = json.loads(
        text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")
    )
    assert list(value) == ["command", "ok", "results", "errors"]
    assert isinstance(value["command"], str)
    assert value["ok"] is (not value["errors"])
    assert all(isinstance(result, dict) for result in value["results"])
    for error in value["errors"]:
        assert list(error) == ["error", "pipeline"]
        assert error["error"].strip()
        assert error["pipeline"] is None or isinstance(error["pipeline"], str)
    return value


class Command:
    """The command line in this process: fast, and its warnings are errors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._patch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> Said:
        self._patch.setattr(sys, "argv", ["embedding-pipelines", *arguments])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        return Said(code if isinstance(code, int) else 0, *self._capsys.readouterr())
