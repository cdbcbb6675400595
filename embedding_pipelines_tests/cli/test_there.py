"""Commands that change or foresee what is live say and do on a server what they do here: each is typed
for both of two equal homes. The server's long work is done in this process; `test_contract.py` has it
in processes of its own."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from embedding_pipelines.environment import HOME_VARIABLE, instance_folder
from embedding_pipelines.errors import ReleaseError
from embedding_pipelines.serving import work
from embedding_pipelines.serving.runs import Runs
from embedding_pipelines_tests.chain import copy_home, run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.commands import Command, Said
from embedding_pipelines_tests.conftest import HASHING, UNMEASURED
from embedding_pipelines_tests.serving.live import live

KEY = "key-of-the-tests"
HELD = HASHING.partition("evaluation")[0].replace("*.csv", "held/*.csv") + UNMEASURED.replace(
    "may_shrink: 1", "may_shrink: 0.1"
)
Both = Callable[..., tuple[Said, Said]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`things` has two releases; what the last run of `held` wrote is held back."""
    home = tmp_path_factory.mktemp("built")
    write_pipeline(home, "things", HASHING)
    write_pipeline(home, "held", HELD)
    write_csv(home, "a.csv", [(1, "red fox", "x"), (2, "blue whale", "y")])
    write_csv(home, "held/a.csv", [(number, f"tale {number}", "x") for number in range(30)])
    for name in ("things", "held"):
        run_steps(home, name)
    write_csv(home, "b.csv", [(3, "grey owl", "y")])
    write_csv(home, "held/a.csv", [(number, f"tale {number}", "x") for number in range(20)])
    run_steps(home, "things")
    with pytest.raises(ReleaseError, match="not_worse_than_live"):
        run_steps(home, "held")
    write_csv(home, "c.csv", [(4, "green snake", "y")])
    return home


@pytest.fixture
def both(
    built: Path,
    tmp_path: Path,
    empty_instance: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Both]:
    """Types a command here, and again with `--server`."""
    homes = here, there = tmp_path / "here", tmp_path / "there"
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setenv("EMBEDDING_API_KEY", KEY)
    monkeypatch.setenv(HOME_VARIABLE, str(here))
    for home in homes:
        shutil.copytree(empty_instance, instance_folder(copy_home(built, home)))
    monkeypatch.setattr(
        Runs, "_spawn", lambda runs, run_id, lock: work.main(runs.home, run_id, os.dup(lock))
    )
    command = Command(monkeypatch, capsys)
    with live(there, KEY) as (address, _, _):
        monkeypatch.chdir(there)  # where the server's files are, for those that are named

        def type_both(*words: str) -> tuple[Said, Said]:
            first, second = command(*words), command(*words, "--server", address)
            return (
                Said(first.code, *(_plain(text, str(here)) for text in first[1:])),
                Said(second.code, *(_plain(text, str(there), address) for text in second[1:])),
            )

        yield type_both


def _plain(text: str, home: str, address: str = "no address") -> str:
    """Without what differs from place to place, and from run to run."""
    for gone in (f" --server {address}", f"{home}/"):
        text = text.replace(gone, "")
    text = re.sub(r"forgotten/receipts/\S+\.json", "forgotten/receipts/TIME.json", text)
    text = re.sub(r'"(run_id|at)": "[^"]+"', r'"\1": ""', text)
    text = re.sub(r'("hashes": \[)[^]]*', r"\1", text)
    text = re.sub(r"[\d,]+ tokens/s", "tokens/s", text)
    text = re.sub(r"(\d+ min )?\d+(\.\d+)? s\b", "0 s", text)
    return re.sub(r"\d+\.\d+(,?\n)", r"0\1", text)  # seconds


def same(pair: tuple[Said, Said]) -> Said:
    here, there = pair
    assert there == here
    return here


def test_a_rollback_and_what_it_cannot_do(both: Both) -> None:
    said = same(both("rollback", "things"))
    assert said.out.splitlines() == [
        "things: live release 2 -> 1 (2 rows)",
        "To undo it: embedding-pipelines rollback things --to 2",
    ]
    assert "has no release before 1" in same(both("rollback", "things")).err
    assert "has no release 9; it has 1, 2" in same(both("rollback", "things", "--to", "9")).err
    said = same(both("rollback", "things", "--to", "2", "--json"))
    assert said.results == [{"pipeline": "things", "before": 1, "live": 2, "rows": 3}]
    here, there = both("rollback", "nothing")
    assert here.code == there.code == 1
    assert "There is no pipeline 'nothing'" in there.err


def test_a_plan(both: Both) -> None:
    said = same(both("plan", "things"))
    assert said.out.startswith("things: 1 new, 3 rows unchanged\n  embeds   1 text, about 2 tokens")
    (row,) = same(both("plan", "things", "--json")).results
    assert (row["rows_new"], row["provider"]) == (1, "hashing")
    shutil.rmtree("data/held")
    shutil.rmtree("../here/data/held")
    said = same(both("plan"))
    assert (said.code, "things: 1 new" in said.out) == (1, True)
    assert "held: " in said.err
    assert "matches no file" in said.err


def test_a_release_of_what_is_held_back(both: Both) -> None:
    assert "give --force and --reason" in same(both("release", "held")).err
    said = same(both("release", "held", "--force", "--reason", "It is so."))
    assert said.code == 0, said.err
    assert "held: release 2 is live: 20 rows, " in said.out
    said = same(both("release", "things", "--force", "--reason", "It is so.", "--json"))
    assert said.envelope["command"] == "release"


def test_a_run_with_its_steps_and_one_that_is_held_back(both: Both) -> None:
    said = same(both("run", "things"))
    assert said.out.splitlines()[0].startswith("things documents    ")
    assert "things: release 3 is live: 4 rows, 0 s in all." in said.out
    here, there = (said.results[0]["steps"] for said in both("run", "things", "--json"))
    assert here == there  # but for the run: here nothing is to do, and Dagster has none
    assert (there[-1]["release"], there[-1]["changed"]) == (3, False)
    said = same(both("run", "held"))
    assert (said.code, "held: stopped after " in said.out, "not_worse" in said.err) == (
        1,
        True,
        True,
    )
    shutil.rmtree("data/held")
    shutil.rmtree("../here/data/held")
    assert "matches no file" in same(both("run", "held")).err


def test_documents_are_pushed_deleted_and_withdrawn(both: Both, tmp_path: Path) -> None:
    path = tmp_path / "new.jsonl"

    def write(*documents: object) -> str:
        path.write_text("\n".join(map(json.dumps, documents)))
        return str(path)

    new = [{"id": str(number), "title": f"tale {number}"} for number in range(10, 12)]
    said = same(both("push", "things", write(*new)))
    assert said.out == "things: pushed 2 documents, 2 chunks\n"
    (receipt,) = same(
        both("push", "things", write({"id": "9", "title": "x", "a": 1}), "--json")
    ).results
    assert (receipt["embedded"], receipt["ignored"]) == (1, ["a"])
    for wrong, words in (
        ({"id": "a"}, f"{path}:2 (id 'a'): its text is empty"),
        ({"id": "a", "title": float("nan")}, f"{path}:2.title is nan"),
        ({"id": "documents[99]"}, f"{path}:2 (id 'documents[99]'): its text is empty"),
        ([], f"{path}:2 is [], not an object"),
        ({"id": "a", "title": "\ud800"}, f"{path}:2 holds half a character"),
    ):
        said = same(both("push", "things", write(new[0], wrong)))
        assert (said.code, words in said.err) == (1, True), said.err
    said = same(both("push", "things", "--delete", "2", "--delete", "no", "--withdraw", "10"))
    assert said.out == (
        "things: deleted 2 documents; nothing was there of no\nthings: withdrew 1 document\n"
    )
    said = same(both("push", "things"))
    assert (said.code, "Name a file of documents" in said.err) == (2, True)


def test_documents_are_forgotten(both: Both, tmp_path: Path) -> None:
    here, there = both("forget", "things", "--id", "2")
    assert here.code == there.code == 1
    assert "'2' and all releases but a new one. Say --yes to erase them for good." in there.err
    assert "no document '7'" in same(both("forget", "things", "--id", "7", "--yes")).err
    here, there = both("forget", "things", "--id", "2", "--yes")
    assert there.code == 0, there.err
    first, proof, *_, last = there.out.splitlines()
    assert first == "things: forgot 1 document; release 3 is live"
    assert proof.endswith("and searched by 1 vector: nothing is left")
    assert (first, last) == (here.out.splitlines()[0], here.out.splitlines()[-1])
    named = [path for path in (tmp_path / "there/data/warehouse/runs").iterdir() if path.is_file()]
    assert named
    assert not any('"ids"' in path.read_text() for path in named)  # nor is what is forgotten
    said = same(both("forget", "things", "--id", "2", "--undo"))
    assert said.out.startswith("things: '2' may come back with the next run")
    assert "is not forgotten" in same(both("forget", "things", "--id", "2", "--undo")).err
    (receipt,) = both("forget", "things", "--source", "data/b.csv", "--yes", "--json")[1].results
    assert (receipt["documents"], receipt["left"]) == (1, [])
