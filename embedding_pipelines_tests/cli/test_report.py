"""The command `report`: it prints where the page is, and opens it only where somebody can see
it."""

import sys
import webbrowser
from pathlib import Path

import pytest

from embedding_pipelines_tests.chain import run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.commands import Command
from embedding_pipelines_tests.conftest import HASHING

ROWS = [(1, "red fox", "animal"), (2, "blue whale", "animal"), (3, "green tea", "drink")]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pages that would have been opened."""
    pages: list[str] = []
    monkeypatch.setattr(webbrowser, "open", pages.append)
    return pages


@pytest.fixture
def things(home: Path) -> Path:
    write_pipeline(home, "things", HASHING)
    write_csv(home, "a.csv", ROWS)
    run_steps(home, "things")
    return home


def test_the_path_is_printed_and_nothing_is_opened_without_a_terminal(
    command: Command, things: Path, opened: list[str]
) -> None:
    said = command("report", "things")
    page = things / "data" / "warehouse" / "reports" / "things.html"
    assert said.out.splitlines()[-1] == str(page)
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert opened == []


def test_json_says_what_is_in_the_page(command: Command, things: Path, opened: list[str]) -> None:
    (page,) = command("report", "things", "--json").results
    counts = (page["pipeline"], page["release"], page["rows"], page["points"])
    assert counts == ("things", 1, 3, 3)
    assert Path(page["path"]).stat().st_size == page["size_bytes"]
    assert opened == []


@pytest.mark.parametrize(
    ("display", "arguments", "opens"),
    [(":0", [], True), (":0", ["--no-open"], False), (":0", ["--json"], False), ("", [], False)],
)
def test_the_page_is_opened_on_a_terminal_with_a_display(
    display: str,
    arguments: list[str],
    opens: bool,
    things: Path,
    opened: list[str],
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert command("report", "things", *arguments).code == 0
    page = things / "data" / "warehouse" / "reports" / "things.html"
    assert opened == ([page.as_uri()] if opens else [])


def test_a_pipeline_without_a_release_or_a_file_is_a_readable_error(
    command: Command, home: Path
) -> None:
    write_pipeline(home, "things", HASHING)
    for name, said in (("things", "no release yet"), ("thing", "Did you mean 'things'")):
        ended = command("report", name)
        assert (ended.code, ended.out) == (1, "")
        assert said in ended.err
