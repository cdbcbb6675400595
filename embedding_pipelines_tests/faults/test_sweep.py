"""A few faults; `python -m embedding_pipelines_tests.faults.sweep 2000` tries many."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from embedding_pipelines_tests.faults.children import library

TOOLS = "embedding_pipelines_tests.faults"


def tool(name: str, *arguments: str) -> None:
    """A tool must end well; it is a process of its own, with the shim loaded."""
    command = [sys.executable, "-m", f"{TOOLS}.{name}", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.slow
def test_a_fault_at_any_call_loses_nothing() -> None:
    tool("sweep", "5", "--scenario", "change")


@pytest.mark.slow
def test_a_fault_while_a_document_is_forgotten_leaves_no_text_and_no_searcher_without_a_release() -> (
    None
):
    tool("sweep", "6", "--scenario", "forget")


@pytest.mark.slow
def test_faults_in_more_scenarios_and_in_the_real_command() -> None:
    tool("sweep", "8", "--command", "2", "--scenario", "another codec", "--scenario", "delete")


@pytest.mark.slow
def test_a_fault_of_a_request_to_the_store_loses_nothing() -> None:
    tool("store_sweep", "4", "--scenario", "change", "--scenario", "forget")


@pytest.mark.slow
def test_random_sequences_end_as_a_clean_build_does() -> None:
    tool("sequences", "4", "--acts", "1", "--seed", "4")  # without files


@pytest.mark.slow
def test_more_random_sequences() -> None:
    tool("sequences", "20", "--acts", "3", "--seed", "2")  # on two machines


def test_the_shim_reaches_a_process_by_its_environment(tmp_path: Path) -> None:
    """As `embedding-pipelines` itself can be run with it."""
    faults = {"FAULT_FOLDER": str(tmp_path), "FAULT_KIND": "ENOSPC", "FAULT_AT": "2"}
    code = (
        "import pathlib, sys\n"
        "for name in 'ab':\n"
        "    try:\n"
        "        print(pathlib.Path(sys.argv[1], name).write_text(name))\n"
        "    except OSError as error:\n"
        "        print(error.errno)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, **faults, "LD_PRELOAD": str(library())},
        capture_output=True,
        text=True,
    )
    assert ended.stdout.split() == ["28", "28"], ended.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
