"""The command `push`."""

import io
import json
import sys
from pathlib import Path

import pytest

from embedding_pipelines.environment import HOME_VARIABLE
from embedding_pipelines_tests.chain import write_pipeline
from embedding_pipelines_tests.commands import Command

PIPELINE = '{"model": {"provider": "hashing", "dimensions": 16}, "input_type": "text"}'


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    write_pipeline(tmp_path, "notes", PIPELINE)
    return Command(monkeypatch, capsys)


def write(home: Path, *lines: str) -> str:
    path = home / "new.jsonl"
    path.write_text("\n".join(lines))
    return str(path)


def documents(count: int) -> list[str]:
    return [json.dumps({"id": str(at), "text": f"text {at}"}) for at in range(count)]


def test_a_file_is_searched_at_once(command: Command, tmp_path: Path) -> None:
    said = command("push", "notes", write(tmp_path, *documents(3), ""))
    assert "pushed 3 documents, 3 chunks" in said.out
    assert "text 2" in command("search", "notes", "text 2", "-k", "1").out
    said = command("push", "notes", "--delete", "2", "--delete", "x")
    assert "deleted 2 documents; nothing was there of x" in said.out
    assert "text 2" not in command("search", "notes", "text 2", "-k", "9").out
    assert "withdrew 1 document" in command("push", "notes", "--withdraw", "0").out
    assert command("status", "notes", "--json").results[0]["pushed_waiting"] == 4


def test_stdin_and_json(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "\n".join(documents(1_500)).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    results = command("push", "notes", "-", "--json").results
    assert [result["documents"] for result in results] == [1_000, 500]


def test_a_wrong_line_is_named(command: Command, tmp_path: Path) -> None:
    path = write(tmp_path, *documents(1), '{"id": "a"')
    said = command("push", "notes", path)
    assert said.code == 1
    assert f"{path}:2 is no JSON" in said.err
    path = write(tmp_path, *documents(1), '{"id": "a"}')
    said = command("push", "notes", path)
    assert said.code == 1
    assert f"{path}:2 (id 'a'): its text is empty" in said.err
    path = write(tmp_path, *documents(1_000), "", '{"id": "a", "text": NaN}')
    said = command("push", "notes", path)
    assert said.code == 1
    assert f"{path}:1002.text is nan" in said.err
    assert "The 1,000 documents up to line 1,000 are taken" in said.err
    assert "Name a file of documents" in command("push", "notes").err
