"""The commands `rejected`, `delete` and `forget`."""

import contextlib
import os
import pty
import select
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from embedding_pipelines.cli.common import INTERRUPTED
from embedding_pipelines.doctor.examine import examine
from embedding_pipelines.embedding.sanity import UNLIKE_TEXTS
from embedding_pipelines.errors import SourceError
from embedding_pipelines.files import write_json
from embedding_pipelines.spec.load import read_draft
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import run_of, run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.commands import EXECUTABLE, Command
from embedding_pipelines_tests.conftest import HASHING, PLAIN, UNMEASURED
from embedding_pipelines_tests.decoded import files_with
from embedding_pipelines_tests.embedding.service import DIALECT
from embedding_pipelines_tests.providers.wire import serve
from embedding_pipelines_tests.shared import at_work

CTRL_C = b"\x03"
PIPELINE = HASHING.replace("metadata: [cat]", "metadata: {cat: int}, max_rejected: 3")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


def write_rows(home: Path, wrong: int) -> None:
    rows = [(number, f"text {number}", number) for number in range(8)]
    write_csv(home, "a.csv", rows + [(100 + n, "x\x1b[2J", f"no {n}") for n in range(wrong)])


def test_rejected_records_are_shown_with_place_and_reason(command: Command, home: Path) -> None:
    write_pipeline(home, "p", PIPELINE)
    write_rows(home, 3)
    run_steps(home, "p")
    lines = command("rejected", "p", "-n", "2").out.splitlines()
    assert lines[0].startswith("data/a.csv:10: ")
    assert "'no 0'" in lines[0]
    assert lines[1] == '    "100","x [2J","no 0"'
    assert lines[4] == "p: 3 rejected, 2 of them shown"
    assert lines[5].startswith("the whole table: ")
    (result,) = command("rejected", "p", "--json").results
    assert (result["total"], len(result["rejected"])) == (3, 3)
    assert result["rejected"][0].keys() == {"place", "reason", "content", "bytes"}


def test_those_of_a_run_that_ended_for_them_are_shown_until_it_ends_well(
    command: Command, home: Path
) -> None:
    write_pipeline(home, "p", PIPELINE)
    write_rows(home, 2)
    run_steps(home, "p")
    write_rows(home, 4)
    with pytest.raises(SourceError):
        run_steps(home, "p")
    assert command("rejected", "p", "--json").results[0]["total"] == 4
    write_rows(home, 1)
    run_steps(home, "p")
    assert command("rejected", "p", "--json").results[0]["total"] == 1


def test_documents_without_text_follow_what_was_rejected(command: Command, home: Path) -> None:
    write_pipeline(home, "p", PIPELINE)
    write_csv(home, "a.csv", [(1, "one", 1), (2, "  ", 2), (3, "three", "no number"), (4, "", 4)])
    run_steps(home, "p")
    (result,) = command("rejected", "p", "--json").results
    assert (result["total"], result["empty"]) == (1, 2)
    places = {row["place"]: row["reason"] for row in result["rejected"]}
    assert next(iter(places)) == "data/a.csv:4"
    assert set(places) == {"data/a.csv:3", "data/a.csv:4", "data/a.csv:5"}
    assert places["data/a.csv:5"] == "its text is empty after cleaning"
    lines = command("rejected", "p", "-n", "2").out.splitlines()
    assert "p: 1 rejected, 2 documents without text, 2 of them shown" in lines
    write_csv(home, "a.csv", [(1, "one", 1), (2, "two", 2)])
    run_steps(home, "p")
    assert command("rejected", "p").out == "p: 0 rejected\n"


def test_nothing_rejected(command: Command, home: Path) -> None:
    write_pipeline(home, "p", PIPELINE)
    assert command("rejected", "p").out == "p: 0 rejected\n"


def test_retry_sends_rejected_texts_alone_and_releases_what_was_accepted(
    command: Command, home: Path
) -> None:
    write_csv(home, "a.csv", [(f"d{n}", f"text number {n}", "x") for n in range(20)])
    with serve(DIALECT, 64) as server:
        options = f"dimensions: 64, base_url: '{server.url}/v1'"
        text = PLAIN.replace(
            "{provider: hashing}", f"{{provider: openai, model: little, {options}}}"
        )
        write_pipeline(home, "p", text + UNMEASURED)
        assert "were never embedded. Run" in command("retry", "p").err
        server.poisoned = lambda text: (
            "Not this one." if text in ("text number 7", "text number 8") else None
        )
        run_steps(home, "p")
        billed = dict(server.billed)
        write_csv(home, "b.csv", [("new", "a text that no run has read yet", "x")])
        server.poisoned = {"text number 8": "Not this one."}.get
        said = command("retry", "p")
        assert (said.code, said.err) == (0, "")
        assert "p: 1 of 2 rejected texts accepted." in said.out
        assert "p: release 2 is live: 19 rows" in said.out
        assert "documents" not in said.out
        again = {text for text, count in server.billed.items() if count != billed.get(text)}
        assert again == {"text number 7", *UNLIKE_TEXTS}
        (result,) = command("rejected", "p", "--json").results
        (row,) = result["rejected"]
        assert (row["place"], row["content"]) == ("d8#0", "text number 8")
        assert "Not this one." in row["reason"]
        assert row["bytes"] == len("text number 8")


def test_retry_without_a_rejected_text_does_nothing(command: Command, home: Path) -> None:
    write_pipeline(home, "p", PIPELINE)
    write_rows(home, 2)
    run_steps(home, "p")
    assert command("retry", "p").out == "p: no text is rejected.\n"


@pytest.mark.parametrize("answer", [b"n\n", b"\x04", CTRL_C])
def test_a_question_that_is_not_answered_with_yes_stops_without_a_change(
    home: Path, answer: bytes
) -> None:
    path = write_pipeline(home, "p", HASHING)
    ours, theirs = pty.openpty()
    command = [EXECUTABLE, "delete", "p"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        text = b""
        while not text.endswith(b"[y/N]: "):
            text += os.read(ours, 1_000)
        seconds = 0
        with contextlib.suppress(OSError):  # which is how the end of a terminal reads on Linux
            while True:
                if select.select([ours], [], [], seconds)[0]:
                    more = os.read(ours, 1_000)
                    if not more:
                        break
                    text += more
                elif answer == CTRL_C:  # this terminal is not the one that steers the process
                    process.send_signal(signal.SIGINT)
                else:
                    os.write(ours, answer)
                seconds = 10  # it may have come just before the process began to listen
    os.close(ours)
    assert process.returncode == INTERRUPTED
    assert b"Stopped. Nothing was changed." in text
    assert b"Traceback" not in text
    assert path.exists()


def test_delete_asks_and_says_what_went(command: Command, home: Path) -> None:
    write_pipeline(home, "p", PIPELINE)
    write_rows(home, 0)
    run_steps(home, "p")
    asked = command("delete", "p")
    assert (asked.code, asked.out) == (1, "")
    assert "delete p: 1 release, " in asked.err
    assert "Say --yes" in asked.err
    (result,) = command("delete", "p", "--yes", "--json").results
    assert result["releases"] == [1]
    assert not (home / "pipelines" / "p.yaml").exists()
    assert command("delete", "p", "--yes").code == 1


def test_forget_asks_erases_and_says_what_it_looked_at(command: Command, home: Path) -> None:
    write_pipeline(home, "p", HASHING)
    write_csv(home, "a.csv", [(1, "red fox", "x"), (2, "blue whale", "y"), (3, "grey owl", "y")])
    assert command("run", "p").code == 0
    said = command("forget", "p", "--id", "2")
    assert (said.code, said.out) == (1, "")
    assert (
        "1 document and all releases but a new one. Say --yes to erase them for good." in said.err
    )
    assert "Name documents by --id, or a source file" in command("forget", "p", "-y").err
    assert "no document '7'" in command("forget", "p", "--id", "7", "--yes").err
    said = command("forget", "p", "--id", "2", "--yes")
    assert (said.code, said.err) == (0, "")
    first, second, *_, last = said.out.splitlines()
    assert first == "p: forgot 1 document; release 2 is live"
    assert second.startswith("looked for 1 text in ")
    assert second.endswith("and searched by 1 vector: nothing is left")
    assert last.startswith("receipt: ")
    assert files_with(home / "data" / "warehouse", "blue whale") == []
    out = command("run", "p").out
    assert "1 forgotten left out" in out
    assert command("status", "p", "--json").results[0]["forgotten"] == 1
    (result,) = command("forget", "p", "--source", "data/a.csv", "--yes", "--json").results
    assert (result["documents"], result["left"]) == (2, [])
    said = command("forget", "p", "--id", "2", "--undo")
    assert said.out.startswith("p: '2' may come back with the next run")
    assert "is not forgotten" in command("forget", "p", "--id", "2", "--undo").err


def test_forget_knows_what_another_machine_has_published(
    command: Command, home: Path, tmp_path: Path
) -> None:
    write_pipeline(home, "p", HASHING)
    write_csv(home, "a.csv", [(1, "red fox", "x"), (2, "blue whale", "y"), (3, "grey owl", "y")])
    run_steps(home, "p")
    (home / "warehouse.yaml").write_text(f"bucket: {(tmp_path / 'bucket').as_uri()}\n")
    with at_work(home):
        pass
    shutil.rmtree(home / "data" / "warehouse")  # as on a new machine
    assert "forgot 1 document" in command("forget", "p", "--id", "2", "--yes").out


def test_what_a_cluster_put_aside_is_told_with_the_way_back(command: Command, home: Path) -> None:
    write_pipeline(home, "p", PIPELINE)
    write_rows(home, 1)
    run_steps(home, "p")
    assert command("rejected", "p", "--json").results[0]["quarantined"] == {}
    folder = run_of(home, "p").folder
    write_json(folder.quarantine, {"partitions": {"b03": "exit code 9"}})
    (result,) = command("rejected", "p", "--json").results
    assert result["quarantined"] == {"b03": "exit code 9"}
    words = "partition b03: exit code 9. It ended every worker that had it"
    lines = command("rejected", "p").out.splitlines()
    assert lines[-1].startswith(f"put aside: {words}")
    assert lines[-1].endswith("`embedding-pipelines run p` tries it again.")
    assert words in command("status", "p", "--json").results[0]["quarantined"]
    findings = examine(read_draft(home / "pipelines" / "p.yaml"), Warehouse(home))
    (sentence,) = [each.sentence for each in findings if not each.is_well]
    assert words in sentence
    folder.embeddings.forget("b03")
    run_steps(home, "p")
    assert command("rejected", "p", "--json").results[0]["quarantined"] == {}
