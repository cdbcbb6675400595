"""The commands around flow control: `plan`, `models`, and Ctrl-C while a service lets one wait."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedding_pipelines.catalogue import catalogue
from embedding_pipelines.cli import pipelines
from embedding_pipelines.cli.terminal import make_console
from embedding_pipelines.environment import HOME_VARIABLE
from embedding_pipelines.errors import ReleaseError
from embedding_pipelines.providers.common.prices import PRICES_OF
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.commands import EXECUTABLE, Command
from embedding_pipelines_tests.conftest import HASHING, UNMEASURED
from embedding_pipelines_tests.embedding.service import DIALECT
from embedding_pipelines_tests.providers.wire import Fault, WireServer, serve
from embedding_pipelines_tests.runs import run_whole

ROWS = [(number, f"tale {number} of the fox", "tale") for number in range(30)]
REMOTE = """\
source: {{kind: csv, path: 'data/*.csv', id: id, text: [title], metadata: [cat]}}
model:
  {{provider: openai, base_url: '{url}/v1', model: little, dimensions: 64, usd_per_million_tokens: 2}}
partitions: 2
"""


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return Command(monkeypatch, capsys)


@pytest.fixture
def server(home: Path) -> Iterator[WireServer]:
    """The service of the pipeline `tales`."""
    with serve(DIALECT) as running:
        write_pipeline(home, "tales", UNMEASURED + REMOTE.format(url=running.url))
        write_csv(home, "a.csv", ROWS)
        yield running


def test_plan_says_what_the_run_then_does(command: Command, home: Path, server: WireServer) -> None:
    said = command("plan")
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[0] == "tales: 30 new"
    assert re.fullmatch(
        r"  embeds   30 texts, about \d+ tokens, in 2 requests to openai:little", lines[1]
    )
    assert lines[2] == "  costs    less than 0.01 USD"
    estimate = "an estimate before the first run: 0.5 s a request, 8 at a time"
    assert lines[3:] == [f"  takes    about 0.1 s: {estimate}"]
    assert not server.requests

    [row] = command("plan", "tales", "--json").results
    assert (row["pipeline"], row["rows_new"], row["texts_to_embed"], row["seconds"]) == (
        "tales",
        30,
        30,
        0.1,
    )
    assert (row["within_budget"], row["missing"]) == (None, [])
    assert row["usd"] == pytest.approx(row["tokens"] * 2 / 1e6, rel=0.02)
    [result] = command("run", "--json").results
    steps = {step["step"]: step for step in result["steps"]}
    assert steps["embeddings"]["embedded_tokens"] == row["tokens"]
    assert steps["vector_store"]["added"] == row["rows_new"]
    assert len(server.requests) == row["requests"]
    assert steps["documents"]["changed"] is True

    [after] = command("plan", "--json").results
    assert (after["rows_unchanged"], after["rows_new"], after["tokens"], after["usd"]) == (
        30,
        0,
        0,
        0,
    )
    assert command("plan").out == "tales: 30 rows unchanged; a run has nothing to do\n"
    [again] = command("run", "--json").results
    assert not any(step["changed"] for step in again["steps"])


def test_plan_of_several_pipelines_names_each(
    command: Command, home: Path, server: WireServer
) -> None:
    write_pipeline(home, "notes", HASHING)
    write_pipeline(home, "broken", "source: [\n")
    all_of_them = command("plan", "--json")
    assert [row["pipeline"] for row in all_of_them.results] == ["notes", "tales"]
    assert [error["pipeline"] for error in all_of_them.envelope["errors"]] == ["broken"]
    assert [row["pipeline"] for row in command("plan", "tales", "--json").results] == ["tales"]


def test_plan_tells_a_mistake_in_a_sentence(command: Command, home: Path) -> None:
    write_pipeline(home, "notes", HASHING)
    said = command("plan", "notes")
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("error: ")
    assert "matches no file" in said.err
    assert "matches no file" in command("plan", "notes", "--json").errors[0]
    assert "There is no pipeline 'note'" in command("plan", "note").err


def test_a_pipeline_that_is_being_run_is_not_planned(command: Command, home: Path) -> None:
    write_pipeline(home, "notes", HASHING)
    write_csv(home, "a.csv", ROWS)
    run_whole(home, "notes")
    with Warehouse(home).pipeline("notes").lock("run"):
        said = command("plan", "notes")
    assert (said.code, said.out) == (1, "")
    assert "Pipeline 'notes' is being run by another process" in said.err
    assert command("plan", "notes").code == 0


def test_models_end_with_the_day_of_their_prices(
    command: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = command("models")
    heading, *lines = said.out.splitlines()
    day = PRICES_OF.isoformat()
    assert (said.code, said.err) == (0, "")
    assert heading.split()[:2] == ["alias", "model"]
    assert (
        f"size in dimensions; context in tokens; usd per million tokens, as of {day}; batch prices with --json."
        == lines[len(catalogue())]
    )
    assert lines[-1] == "gemini:gemini-embedding-001 retires on 2028-05-14."
    terminal = make_console(force_terminal=True, color_system=None, width=80)
    monkeypatch.setattr(pipelines, "make_console", lambda: terminal)
    on_terminal = command("models").out.splitlines()
    assert max(map(len, on_terminal)) <= 80
    assert "…" not in "".join(on_terminal)  # names are whole
    assert command("models", "--json").results == [
        row | {"prices_are_of": day} for row in catalogue()
    ]


def started(home: Path, *arguments: str) -> "subprocess.Popen[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DAGSTER")}
    environment = {**kept, HOME_VARIABLE: str(home)}
    return subprocess.Popen(
        [EXECUTABLE, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.alone
def test_ctrl_c_ends_a_long_wait_for_a_service_at_once(home: Path, server: WireServer) -> None:
    server.chance = lambda _: Fault("status", 429, "Rate limit reached.", {"retry-after": "120"})
    process = started(home, "run", "tales")
    deadline = time.monotonic() + 60
    while not server.requests and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    stopped = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - stopped < 4
    assert process.returncode == 130
    told, stopped = errors.splitlines()
    assert told.endswith("answered 429: Rate limit reached. Waiting 120 seconds, as it asks.")
    assert stopped == "Stopped. What was embedded is kept: the same command goes on from there."


def test_plan_foresees_what_holds_a_run_back_and_a_table_that_is_built_anew(
    command: Command, home: Path
) -> None:
    strict = HASHING.replace("may_shrink: 1", "may_shrink: 0.5")
    write_pipeline(home, "p", strict)
    write_csv(home, "a.csv", ROWS)
    run_steps(home, "p")
    assert command("plan", "p").out == "p: 30 rows unchanged; a run has nothing to do\n"
    write_csv(home, "a.csv", ROWS[:3])
    said = command("plan", "p")
    sentence = "The table has only 3 documents; release 1 has 30. 90.0% are gone"
    assert f"  checks   a run will hold this back: {sentence}" in said.out
    with pytest.raises(ReleaseError, match=re.escape(sentence)):
        run_steps(home, "p")
    write_pipeline(home, "p", HASHING)
    assert command("plan", "p", "--json").results[0]["held_back"] == ""

    write_csv(home, "a.csv", ROWS)
    write_pipeline(home, "p", strict + "compression: [int8]\n")
    said = command("plan", "p")
    assert "  builds   the table anew, since compression changed\n" in said.out
    assert "hold this back" not in said.out
    text = HASHING.replace("metadata: [cat]", "metadata: []")
    write_pipeline(
        home, "p", text.replace("{provider: hashing}", "{provider: hashing, dimensions: 32}")
    )
    assert "  builds   the table anew, since metadata, model changed\n" in command("plan", "p").out
