"""Calls the command line: in this process, or as the real command in a process of its own."""

import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from embedding_pipelines.cli.main import main

EXECUTABLE = str(Path(sys.executable).with_name("embedding-pipelines"))


class Said(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


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
