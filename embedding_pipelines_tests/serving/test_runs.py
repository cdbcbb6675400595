"""Long work: its process, its lock and its record, with a process that does as the test says."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from embedding_pipelines.orchestration.dead_runs import ENDED
from embedding_pipelines.serving import runs as module
from embedding_pipelines.serving.runs import GROUPS, Runs
from embedding_pipelines.serving.wire import Conflict, NotFound, RunReply

# Writes its process id, waits until it may end, and ends as `work.py` does.
STUB = """
import os, pathlib, sys, time
from embedding_pipelines.files import read_json, write_json
home, run_id, lock = sys.argv[1:]
home = pathlib.Path(home)
(home / "process").write_text(str(os.getpid()))
while not (home / "end").exists():
    time.sleep(0.02)
path = home / "data" / "warehouse" / "runs" / f"{run_id}.json"
ended = {"ended_at": "2026-11-27T05:00:00Z", "problem": (home / "end").read_text()}
write_json(path, {**read_json(path), **ended})
os.close(int(lock))
"""


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.02)


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path, (sys.executable, "-c", STUB))


def started(runs: Runs, pipeline: str = "p") -> tuple[RunReply, int]:
    """A run at work, and its process."""
    (runs.home / "process").unlink(missing_ok=True)
    reply = runs.start(pipeline, 1, "run", {})
    path = runs.home / "process"
    until(lambda: path.exists() and path.read_text() != "")
    return reply, int(path.read_text())


def finish(runs: Runs, run_id: str, problem: str = "") -> RunReply:
    (runs.home / "end").write_text(problem)
    until(lambda: runs.get(run_id).status != "running")
    return runs.get(run_id)


def test_work_goes_on_without_the_server_that_started_it(runs: Runs) -> None:
    reply, process = started(runs)
    assert os.getsid(process) == process  # so that a Ctrl-C for the server is none for it
    other = Runs(runs.home)  # the server is started again
    assert other.get(reply.run_id).status == "running"
    assert other.at_work("p") == "run"
    with pytest.raises(Conflict, match=f"'p' is at work by run {reply.run_id}"):
        other.start("p", 1, "optimize", {})
    ended = finish(other, reply.run_id)
    assert (ended.status, ended.error) == ("succeeded", None)
    assert other.at_work("p") is None


def test_why_it_failed_is_said(runs: Runs) -> None:
    reply, _ = started(runs)
    ended = finish(runs, reply.run_id, "The disk is full.")
    assert (ended.status, ended.error) == ("failed", "The disk is full.")


def test_what_was_killed_has_failed_and_keeps_nobody_out(runs: Runs) -> None:
    reply, process = started(runs)
    os.kill(process, signal.SIGKILL)
    until(lambda: runs.get(reply.run_id).status == "failed")
    assert Runs(runs.home).get(reply.run_id).error == ENDED
    again, _ = started(runs)
    assert finish(runs, again.run_id).status == "succeeded"


def test_what_cannot_even_begin_has_failed(tmp_path: Path) -> None:
    runs = Runs(tmp_path, (sys.executable, "-c", "raise SystemExit('no such module')"))
    reply = runs.start("p", 1, "run", {})
    until(lambda: runs.get(reply.run_id).status == "failed")
    assert "no such module" in (runs.folder / f"{reply.run_id}.log").read_text()


def test_the_same_key_starts_one_run(runs: Runs) -> None:
    key = str(uuid.uuid4())
    first = runs.start("p", 1, "run", {}, key)
    assert runs.start("p", 1, "run", {}, key) == first
    assert first.run_id == key
    with pytest.raises(Conflict, match="is another piece of work"):
        runs.start("q", 2, "run", {}, key)
    assert finish(runs, key).status == "succeeded"
    assert runs.start("p", 1, "run", {}, key).status == "succeeded"


def test_pipelines_do_not_wait_for_each_other(runs: Runs) -> None:
    first, _ = started(runs, "p")
    second, _ = started(runs, "q")
    for reply in (first, second):
        assert finish(runs, reply.run_id).status == "succeeded"
    assert [reply.run_id for reply in runs.of("q", 10)] == [second.run_id]


def test_a_run_of_the_command_line_is_in_the_way(runs: Runs) -> None:
    with (
        runs.warehouse.pipeline("p").lock("run"),
        pytest.raises(Conflict, match="is being run by another process"),
    ):
        runs.start("p", 1, "run", {})
    assert runs.of("p", 10) == []
    assert runs.at_work("p") is None


@pytest.mark.parametrize("group", sorted({*GROUPS.values()}))
def test_no_work_of_any_kind_goes_on_beside_a_deletion(runs: Runs, group: str) -> None:
    at_work = pytest.raises(Conflict, match="'p' is at work")
    with runs.holding("p", group), at_work, runs.holding_all("p"):
        pass
    with runs.holding_all("p"):
        assert runs.at_work("p", group) is None  # no run: `list` shows nothing
        with at_work, runs.holding("p", group):
            pass


@pytest.mark.parametrize(
    "run_id", ["..", "../keys", "keys", "", "a" * 10_000, "fbbdebe1-8f57-45e4-95e5-94037951792b"]
)
def test_an_id_that_is_none_is_not_looked_for(runs: Runs, run_id: str) -> None:
    runs.folder.mkdir(parents=True)
    (runs.folder.parent / "keys.json").write_text("{}")
    with pytest.raises(NotFound):
        runs.get(run_id)


def test_the_oldest_records_go(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 2)
    (runs.home / "end").write_text("")
    ids = []
    for _ in range(3):
        ids.append(runs.start("p", 1, "run", {}).run_id)
        until(lambda: runs.get(ids[-1]).status == "succeeded")
    with pytest.raises(NotFound):
        runs.get(ids[0])
    assert len(list(runs.folder.glob("*.log"))) == 2


def test_a_server_does_not_load_dagster_to_start() -> None:
    code = "import sys, embedding_pipelines.serving.api; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"dagster", "torch", "lancedb"} & set(loaded)
