"""Commands with `--server`, in this process, against an application in a thread."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedding_pipelines.environment import HOME_VARIABLE
from embedding_pipelines.serving.runs import Runs
from embedding_pipelines_tests.chain import write_csv, write_pipeline
from embedding_pipelines_tests.commands import Command
from embedding_pipelines_tests.compare.test_compare import PIPELINE as COMPARED
from embedding_pipelines_tests.compare.test_compare import ROWS as TALES
from embedding_pipelines_tests.serving.live import live
from embedding_pipelines_tests.serving.scripted import ANSWER, Script, scripted
from embedding_pipelines_tests.serving.test_runs import STUB

KEY = "key-of-the-tests"
CONFIG = "model: hashing\ndata_path: data/texts.csv\n"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server; commands are typed in another, empty folder."""
    there, here = tmp_path / "there", tmp_path / "here"
    here.mkdir()
    write_csv(there, "texts.csv", [("red fox",), ("blue whale",)], "text")
    monkeypatch.setenv("EMBEDDING_API_KEY", KEY)
    monkeypatch.setenv(HOME_VARIABLE, str(here))
    monkeypatch.chdir(here)
    (here / "products.yaml").write_text(CONFIG)
    with live(there, KEY) as (address, server, _):
        server.runs = Runs(there, (sys.executable, "-c", STUB))
        yield address
        (there / "end").write_text("")


@pytest.fixture
def script() -> Iterator[Script]:
    with scripted() as script:
        yield script


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


def test_commands_go_to_the_server(command: Command, server: str, tmp_path: Path) -> None:
    said = command("create", "--config", "products.yaml", "--server", server)
    assert said.code == 0, said.err
    assert f"products: pipeline 1 is created, on {server}" in said.out
    (tmp_path / "here" / "products.yaml").write_text(CONFIG + "seed: 3\n")
    said = command("create", "--config", "products.yaml", "--server", server, "--json")
    assert said.results[0]["pipeline"] == "texts"  # the name was taken: it is the data's
    said = command("list", "--server", server)
    assert "products" in said.out
    assert [row["pipeline"] for row in command("list", "--server", server, "--json").results] == [
        "products",
        "texts",
    ]
    assert (
        command("list", "--filter", "active", "--server", server).out == "No pipeline is active.\n"
    )
    said = command("status", "1", "nothing", "--server", server, "--json")
    assert [(row["id"], row["pipeline"], row["status"]) for row in said.results] == [
        (1, "products", "new")
    ]
    assert (said.code, "There is no pipeline 'nothing'" in said.err + said.out) == (1, True)
    said = command("status", "--server", server)
    assert said.code == 0, said.err
    assert said.out.index("products") < said.out.index("texts")
    assert "hashing" in said.out
    (tmp_path / "there" / "end").write_text("The disk is full.")
    said = command("optimize", "--pipeline-id", "1", "--method", "int8", "--server", server)
    assert said.code == 1
    assert "products: The disk is full." in said.err
    said = command("metrics", "--server", server, "--json")
    assert any(sample["name"].endswith("requests_total") for sample in said.results)
    said = command("delete", "products", "--server", server)
    assert (said.code, "Say --yes to delete it" in said.err) == (1, True)
    said = command("delete", "products", "--yes", "--server", server)
    assert f"products: deleted on {server}" in said.out
    assert not list((tmp_path / "here").glob("pipelines/*"))


def test_what_the_server_refuses_is_an_error_in_its_words(
    command: Command, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = command("optimize", "9", "--method", "int8", "--server", server)
    assert (said.code, "There is no pipeline '9'" in said.err) == (1, True)
    said = command("deploy", "9", "--endpoint", "http://localhost:1", "--server", server)
    assert (said.code, "There is no pipeline '9'" in said.err) == (1, True)
    said = command("undeploy", "9", "--server", server)
    assert (said.code, "There is no pipeline '9'" in said.err) == (1, True)
    said = command("run", "--re-embed", "x", "--server", server)
    assert (said.code, "takes no other option" in said.err) == (2, True)
    monkeypatch.setenv("EMBEDDING_API_KEY", "wrong")
    said = command("list", "--server", server)
    assert (said.code, said.out) == (1, "")
    assert "The key is wrong" in said.err
    said = command("list", "--server", "my-server:8080")
    assert (said.code, "is no server" in said.err) == (1, True)


def test_a_search_goes_to_the_server(
    command: Command,
    script: Script,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    photo, place = tmp_path / "cat.jpg", ("--server", script.address)
    photo.write_bytes(b"a photograph")
    note = "3 tokens at the end of what was asked for were not read."
    script.answers = [
        (200, ANSWER),
        (200, ANSWER | {"notes": [note]}),
        (200, ANSWER),
        (200, ANSWER),
    ]
    said = command("search", "photos", "--image", str(photo), "-k", "3", *place)
    assert said.code == 0, said.err
    assert " 1  0.900  cat.jpg" in said.out
    assert "photos, release 2" in said.out
    said = command("search", "2", "a cat", "--mode", "text", "--rerank", "none", "--cut", *place)
    assert (said.code, caplog.messages) == (0, [note])
    said = command("search", "photos", "a cat", "--filter", "a = 1", "--json", *place)
    assert said.results[0]["hits"][0]["document_id"] == "cat.jpg"
    said = command("search", "photos", "--like", "a.jpg", "--like", "b.jpg", *place)
    assert said.code == 0, said.err
    bodies = [body for *_, body in script.requests]
    assert bodies[0].keys() == {"image", "pipeline", "k"}
    assert bodies[1] == {
        "query": "a cat",
        "pipeline": "2",
        "k": 10,
        "mode": "text",
        "rerank": False,
        "truncate": True,
    }
    assert bodies[2] == {"query": "a cat", "pipeline": "photos", "k": 10, "filter": "a = 1"}
    assert bodies[3] == {"like": ["a.jpg", "b.jpg"], "pipeline": "photos", "k": 10}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("a cat", "--rerank", "some/model"), "a server has its own model"),
        (("--image", "missing.jpg"), "missing.jpg"),
    ],
)
def test_what_a_search_on_a_server_cannot_do_is_said(
    command: Command, options: tuple[str, ...], words: str
) -> None:
    said = command("search", "photos", *options, "--server", "http://127.0.0.1:1")
    assert said.code != 0
    assert words in said.err
    assert "Traceback" not in said.err


def test_models_are_compared_on_the_server(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, few = tmp_path / "there", "{provider: hashing, dimensions: 8}"
    write_csv(there, "a.csv", TALES)
    write_pipeline(there, "tales", COMPARED)
    monkeypatch.setenv("EMBEDDING_API_KEY", KEY)
    with live(there, KEY) as (address, _, _):
        said = command("compare", "tales", few, "--documents", "80", "--server", address)
        assert said.code == 0, said.err
        assert said.out.splitlines()[0] == "tales: 80 of 300 documents, 40 known items"
        assert "hashing finds less than hashing" in said.out
        for wrong, words in {
            "minlm": "Did you mean 'minilm'",
            "{provider: word2vec, vectors: /etc/passwd}": "outside the server's home folder",
            "{provider: openai, model: text-embedding-3-small, api_key_env: HOME}": "does not send HOME",
            "{provider: custom, cls: 'models:Mine'}": "runs code",
        }.items():
            said = command("compare", "tales", wrong, "--server", address)
            assert (said.code, words in " ".join(said.err.split())) == (1, True), said.err


def test_a_server_may_be_older(command: Command, script: Script, tmp_path: Path) -> None:
    """One that does not say what a push embedded, nor which steps a run has done."""
    receipt = {"pipeline": "p", "number": 3, "documents": 1, "chunks": 1, "unknown": []}
    run = {"run_id": "7", "pipeline": "p", "kind": "run", "began_at": "2026-11-27T05:00:00Z"}
    run |= {"status": "succeeded", "result": {"release": 2, "rows": 1}}
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "a"}')
    script.answers = [(200, receipt | {"ignored": []})] * 2 + [(202, run), (200, run)]
    said = command("push", "p", str(path), "--server", script.address, "--json")
    assert (said.code, said.results[0]["embedded"]) == (0, None), said.err
    said = command("push", "p", "--delete", "a", "--server", script.address)
    assert (said.code, said.out) == (0, "p: deleted 1 document\n"), said.err
    said = command("run", "p", "--server", script.address)
    assert (said.code, said.out) == (0, "p: run 7 succeeded: release 2 is live\n"), said.err
