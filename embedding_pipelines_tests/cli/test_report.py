"""The command `report`: it prints where the page is, and opens it only for somebody who can see
it."""

import json
import sys
import webbrowser
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from embedding_pipelines.cli import report as cli_report
from embedding_pipelines.errors import ConfigError, ReleaseError
from embedding_pipelines_tests.chain import run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.conftest import HASHING

ROWS = [(1, "red fox", "animal"), (2, "blue whale", "animal"), (3, "green tea", "drink")]


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.callback()(lambda: None)
    cli_report.add_to(app)
    return app


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
    app: typer.Typer, things: Path, opened: list[str]
) -> None:
    said = CliRunner().invoke(app, ["report", "things"], catch_exceptions=False)
    page = things / "data" / "warehouse" / "reports" / "things.html"
    assert said.stdout.splitlines()[-1] == str(page)
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert opened == []


def test_json_tells_what_is_in_the_page(app: typer.Typer, things: Path, opened: list[str]) -> None:
    said = CliRunner().invoke(app, ["report", "things", "--json"], catch_exceptions=False)
    found = json.loads(said.stdout)
    assert (found["pipeline"], found["release"], found["rows"], found["points"]) == (
        "things",
        1,
        3,
        3,
    )
    assert Path(found["path"]).stat().st_size == found["size_bytes"]
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
    app: typer.Typer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    cli_report.report("things", no_open="--no-open" in arguments, as_json="--json" in arguments)
    page = things / "data" / "warehouse" / "reports" / "things.html"
    assert opened == ([page.as_uri()] if opens else [])


def test_a_pipeline_that_never_ran_or_is_not_there_is_a_readable_error(
    app: typer.Typer, home: Path
) -> None:
    write_pipeline(home, "things", HASHING)
    with pytest.raises(ReleaseError, match="no release yet"):
        CliRunner().invoke(app, ["report", "things"], catch_exceptions=False)
    with pytest.raises(ConfigError, match="Did you mean 'things'"):
        CliRunner().invoke(app, ["report", "thing"], catch_exceptions=False)
