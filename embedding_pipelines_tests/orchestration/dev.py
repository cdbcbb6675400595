"""A real `dagster dev`, or a web server alone, on a free port of this machine, and ways to ask it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedding_pipelines.orchestration.instance import ensure_instance_folder
from embedding_pipelines_tests.orchestration.support import environment

WORKSPACE = Path(__file__).parents[2] / "workspace.yaml"
REPOSITORY = {
    "repositoryLocationName": "embedding_pipelines",
    "repositoryName": "__repository__",
}
RUN = """mutation($what: ExecutionParams!) {launchRun(executionParams: $what)
{__typename ... on LaunchRunSuccess{run{runId}} ... on PythonError{message}}}"""
RUNS = "{runsOrError{... on Runs{results{runId jobName status startTime endTime}}}}"

Ask = Callable[..., Any]


@contextmanager
def dagster_dev(home: Path, **more: str) -> Iterator[Ask]:
    """Webserver and daemon of the instance of a home, or of DAGSTER_HOME if `more` names it."""
    more.setdefault("DAGSTER_HOME", str(ensure_instance_folder(home)))
    with serve(home, ("dagster", "dev"), home / "dev.log", more) as (ask, _):
        yield ask


@contextmanager
def webserver(home: Path, **more: str) -> Iterator[Ask]:
    """A web server without a daemon; `more` names its DAGSTER_HOME."""
    with serve(home, ("dagster-webserver",), home / "webserver.log", more) as (ask, _):
        yield ask


@contextmanager
def serve(
    home: Path, words: tuple[str, ...], log: Path, more: Mapping[str, str]
) -> Iterator[tuple[Ask, subprocess.Popen[bytes]]]:
    """A command of Dagster's that has a web server, with what it prints in `log`, as long as the
    context is open."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = str(Path(sys.executable).with_name(words[0]))

    def ask(query: str, **variables: Any) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        url, headers = f"http://127.0.0.1:{port}/graphql", {"Content-Type": "application/json"}
        with urllib.request.urlopen(
            urllib.request.Request(url, body, headers), timeout=60
        ) as reply:
            answer = json.load(reply)
        assert "errors" not in answer, answer
        return answer["data"]

    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, *words[1:], "-w", str(WORKSPACE), "-h", "127.0.0.1", "-p", str(port)],
            env=environment(home, **more),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait(lambda: process.poll() is not None or _answers(ask), 120, log)
            assert process.poll() is None, log.read_text()
            yield ask, process
        finally:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(timeout=20)


def _answers(ask: Ask) -> bool:
    try:
        return bool(ask("{version}"))
    except urllib.error.URLError:
        return False


def wait(done: Callable[[], bool], seconds: float, log: Path) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.5)


def launch_run(ask: Ask, job: str, tags: Mapping[str, str]) -> str:
    """Launch a pipeline's job as the web interface does; the run's id."""
    pairs = [{"key": key, "value": value} for key, value in tags.items()]
    what = {"selector": {**REPOSITORY, "jobName": job}, "executionMetadata": {"tags": pairs}}
    launched = ask(RUN, what=what)["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    return str(launched["run"]["runId"])


def runs(ask: Ask) -> list[dict[str, Any]]:
    """All runs on record, in the order in which they began; runId, jobName, status and times."""
    found: list[dict[str, Any]] = ask(RUNS)["runsOrError"]["results"]
    return sorted(found, key=lambda entry: entry["startTime"] or 0.0)


def have_ended(ask: Ask) -> bool:
    return all(entry["status"] in ("SUCCESS", "FAILURE", "CANCELED") for entry in runs(ask))
