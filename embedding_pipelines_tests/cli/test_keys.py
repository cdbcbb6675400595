"""The command `keys`: a key is shown once."""

import re
from pathlib import Path

import pytest

from embedding_pipelines.serving.auth import Keys
from embedding_pipelines_tests.commands import Command


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


def test_a_key_is_made_shown_once_and_removed(command: Command, home: Path) -> None:
    assert "There are no keys" in command("keys").out
    said = command("keys", "--add", "page", "--scope", "read", "--per-minute", "60")
    assert said.code == 0, said.err
    token = said.out.splitlines()[1]
    key = Keys(None, home).check(token, "read")
    assert key is not None
    assert key.name == "page"
    listed = command("keys")
    assert "page" in listed.out
    assert token not in listed.out
    (row,) = command("keys", "--json").results
    names = {"name", "scope", "per_minute", "principals", "acts_for_others", "created_at"}
    assert row.keys() == names
    command("keys", "--add", "other")
    assert command("keys", "--remove", "other").out == "other: removed\n"
    assert command("keys", "--remove", "page").out.splitlines() == [
        "page: removed",
        "No key is left. A server that runs goes on asking for one; started anew, it needs none.",
    ]
    assert command("keys", "--json").results == []


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["--add", "a", "--remove", "b"], 2, "not both"),
        (
            ["--add", "a", "--scope", "root"],
            2,
            "`--scope` is 'root': write one of read, write, admin",
        ),
        (["--remove", "nobody"], 1, "There is no key 'nobody'"),
    ],
)
def test_what_cannot_be_is_said(
    command: Command, home: Path, words: list[str], code: int, error: str
) -> None:
    said = command("keys", *words)
    assert said.code == code
    assert error in said.err


def test_a_key_is_bound_to_principals_or_acts_for_others(command: Command, home: Path) -> None:
    (ann,) = command("keys", "--add", "ann", "--as", "ann", "--as", "sales", "--json").results
    (shop,) = command("keys", "--add", "shop", "--acts-for-others", "--json").results
    assert (ann["principals"], ann["acts_for_others"]) == (["ann", "sales"], False)
    assert (shop["principals"], shop["acts_for_others"]) == ([], True)
    command("keys", "--add", "page", "--per-minute", "60")
    head, *lines = command("keys").out.splitlines()
    assert head.split("  ")[0] == "name"
    cells = [re.split(r" {2,}", line.strip()) for line in lines]
    assert [row[:-1] for row in cells] == [
        ["ann", "read", "-", "ann, sales"],
        ["shop", "read", "-", "whom it says"],
        ["page", "read", "60", "-"],
    ]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", row[-1]) for row in cells)
    said = command("keys", "--add", "x", "--as", "ann", "--scope", "write")
    assert (said.code, "acts for nobody else" in " ".join(said.err.split())) == (1, True)
