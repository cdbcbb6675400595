"""The real command with readers that leave, terminals without Unicode, full disks, and texts that
try to command the terminal."""

import os
import subprocess
from pathlib import Path

import pytest

from embedding_pipelines.cli.terminal import printable, without_controls
from embedding_pipelines.environment import HOME_VARIABLE, instance_folder
from embedding_pipelines.files import write_json
from embedding_pipelines.orchestration.instance import ensure_instance_folder
from embedding_pipelines.releases import live_release
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.commands import EXECUTABLE, check_envelope
from embedding_pipelines_tests.conftest import HASHING

CLEAR = "\x1b[2J"  # empties a terminal
HEADING = "\x9b31m"  # the same kind of sequence, in one character


def start(
    home: Path,
    *arguments: str,
    stdout: int = subprocess.PIPE,
    variables: dict[str, str] | None = None,
) -> "subprocess.Popen[bytes]":
    """The real command with pipes for what it prints; `variables` for its environment."""
    environment = {**os.environ, HOME_VARIABLE: str(home), **(variables or {})}
    environment.pop("DAGSTER_HOME", None)
    return subprocess.Popen(
        [EXECUTABLE, *arguments], env=environment, stdout=stdout, stderr=subprocess.PIPE
    )


def write_things(home: Path) -> None:
    write_pipeline(home, "things", HASHING)
    write_csv(home, "a.csv", [(1, f"red {CLEAR}fox … à", "x"), (2, f"blue {HEADING}whale", "y")])


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of which the command knows that it was run."""
    home = tmp_path_factory.mktemp("things")
    write_things(home)
    run_steps(home, "things")
    ensure_instance_folder(home)
    last_run = Warehouse(home).pipeline("things").last_run
    write_json(last_run, {"instance": str(instance_folder(home))})
    return home


@pytest.mark.slow
def test_a_run_goes_on_when_its_reader_leaves(tmp_path: Path) -> None:
    write_things(tmp_path)
    reader, writer = os.pipe()
    os.close(reader)
    process = start(tmp_path, "run", "things", stdout=writer)
    os.close(writer)
    assert process.communicate()[1] == b""
    assert process.returncode == 0
    assert live_release(Warehouse(tmp_path).pipeline("things")).number == 1


def test_a_full_disk_behind_the_output_is_an_error_in_one_line(things: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        process = start(things, "list", stdout=full.fileno())
        _, err = process.communicate()
    assert process.returncode == 1
    assert err.decode().startswith("error: the output could not be written: No space")
    assert err.count(b"\n") == 1


def test_a_terminal_without_unicode_is_told_everything(things: Path) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    process = start(things, "run", "things", variables=ascii_only)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert b'search things "..."' in out
    process = start(things, "search", "things", "red fox", "-k", "1", variables=ascii_only)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert b"... \\xe0" in out


@pytest.mark.slow
def test_no_text_commands_the_terminal(things: Path) -> None:
    for arguments in (
        ["search", "things", f"fox {CLEAR}", "-k", "2"],
        ["search", "things", "fox", "--json"],
        ["search", f"no{CLEAR}ne", "fox"],
        ["status", f"no{HEADING}ne", "--json"],
    ):
        out, err = start(things, *arguments).communicate()
        assert not {"\x1b", "\x9b"} & set((out + err).decode()), arguments
        if "--json" in arguments:
            check_envelope(out.decode())


def test_joiners_stay_and_directions_go() -> None:
    words = "می\u200cخواهم 👩\u200d💻"
    assert printable(words) == without_controls(words) == words
    assert without_controls("a\u202eb\x07c\nd") == "a b c d"
