"""What machines read of a run is not said to people twice."""

import io
import logging

import pytest

from embedding_pipelines.orchestration.trail import Noted
from embedding_pipelines.progress import Silent


def test_a_note_is_said_by_the_progress_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging, "lastResort", logging.StreamHandler(said))
    Noted(Silent()).note("a check warns")
    assert said.getvalue() == ""
