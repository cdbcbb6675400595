"""The commands, calls and snippets of the API's contract, as they are written there but for the host
and the program's name, against a server in a process of its own.

`bert` is a small network of BERT's kind with random weights, in the folder where the model would be.
"""

import itertools
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest

from embedding_pipelines import EmbeddingPipelines
from embedding_pipelines.files import write_json
from embedding_pipelines_tests.chain import write_csv
from embedding_pipelines_tests.commands import EXECUTABLE, check_envelope
from embedding_pipelines_tests.providers.test_hf_models import bert_tokenizer, network

KEY = "your_key_here"
PROGRAM = "openclaw embedding-pipelines"  # as the contract calls it
HOST = "http://api.openclaw.com"
BERT = {
    "hidden_size": 768,
    "num_hidden_layers": 1,
    "num_attention_heads": 12,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
}
WORDS = [
    "cat",
    "dog",
    "fox",
    "roof",
    "court",
    "river",
    "stone",
    "lamp",
    "chair",
    "table",
    "night",
    "morning",
]

pytestmark = pytest.mark.slow


class Place(NamedTuple):
    """A home folder, which is also where commands are typed, and its server."""

    home: Path
    server: str
    environment: dict[str, str]

    def type(self, line: str, *more: str) -> subprocess.CompletedProcess[str]:
        """Type a command of the contract."""
        assert line.startswith(f"{PROGRAM} ")
        words = [EXECUTABLE, *shlex.split(line.removeprefix(PROGRAM)), *more]
        return subprocess.run(
            words, cwd=self.home, env=self.environment, capture_output=True, text=True, check=False
        )

    def ask(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """Call the API as the contract says."""
        headers = {"Authorization": f"Bearer {KEY}", **options.pop("headers", {})}
        return httpx2.request(method, self.server + path, headers=headers, timeout=60, **options)

    def write(self, name: str, content: str) -> None:
        (self.home / name).write_text(content)

    def client(self) -> EmbeddingPipelines:
        return EmbeddingPipelines(api_key=KEY, server=self.server)


def number_next(home: Path, number: int) -> None:
    """The next new pipeline gets this number, as the contract's have."""
    path = home / "data" / "warehouse" / "ids.json"
    ids = json.loads(path.read_text())["ids"] if path.exists() else {}
    write_json(path, {"ids": {**ids, f"before_{number}": number - 1}})


def save_bert(home: Path) -> None:
    folder = home / "google-bert" / "bert-base-uncased"
    words = bert_tokenizer()
    words.save_pretrained(folder)
    network("Bert", words, **BERT).save_pretrained(folder)


def write_texts(home: Path, name: str) -> None:
    """150 texts that differ, as `text`."""
    texts = [" ".join(each) for each in itertools.islice(itertools.permutations(WORDS, 3), 150)]
    path = write_csv(home, name, [(text,) for text in texts], "text")
    path.rename(home / name)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("contract")
    save_bert(home)
    for name in ("data.csv", "text_data.csv"):
        write_texts(home, name)
    number_next(home, 123)
    environment = {**os.environ, "EMBEDDING_API_KEY": KEY, "EMBEDDING_PIPELINES_HOME": str(home)}
    environment.pop("DAGSTER_HOME", None)
    with subprocess.Popen(
        [EXECUTABLE, "serve", "--port", "0"], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("Ready on ")
            yield Place(home, line.split()[2], environment)
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)


def ended(place: Place, run: dict[str, Any]) -> dict[str, Any]:
    """A run, once it has ended; asked for as the 202 says."""
    deadline = time.monotonic() + 300
    while run["status"] in ("queued", "running"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
        run = place.ask("GET", f"/api/embedding-pipelines/runs/{run['run_id']}").json()
    return run


def test_create_optimize_list(place: Place) -> None:
    place.write("pipeline.yaml", '{"model": "bert", "data_path": "data.csv"}')
    said = place.type("openclaw embedding-pipelines create --config pipeline.yaml --model bert")
    assert said.returncode == 0, said.stderr
    assert "pipeline 123" in said.stdout

    said = place.type(
        "openclaw embedding-pipelines optimize --pipeline-id 123 --method pca --dimensions 128"
    )
    assert said.returncode == 0, said.stderr
    reply = place.ask("GET", "/api/embedding-pipelines/123").json()
    assert (reply["status"], reply["live_release"]) == ("active", 2)

    body = {"method": "pca", "dimensions": 128}
    response = place.ask("POST", "/api/embedding-pipelines/123/optimize", json=body)
    assert response.status_code == 202
    clash = place.ask("POST", "/api/embedding-pipelines/123/optimize", json=body)
    assert clash.status_code == 409
    assert response.json()["run_id"] in clash.json()["error"]
    run = ended(place, response.json())
    assert run["status"] == "succeeded", run["error"]
    assert run["result"]["optimized"]["method"] == "pca 128"

    said = place.type("openclaw embedding-pipelines list --filter active")
    assert said.returncode == 0
    assert "123" in said.stdout
    reply = place.ask("GET", "/api/embedding-pipelines?filter=active").json()
    assert [each["id"] for each in reply["pipelines"]] == [123]


def test_example_1(place: Place) -> None:
    number_next(place.home, 456)
    place.write("pipeline.yaml", '{"model": "bert", "data_path": "text_data.csv"}')
    said = place.type("openclaw embedding-pipelines create --config pipeline.yaml", "--json")
    assert said.returncode == 0, said.stderr
    (created,) = check_envelope(said.stdout)["results"]
    assert created["id"] == 456
    said = place.type(
        "openclaw embedding-pipelines optimize --pipeline-id 456 --method quantization"
    )
    assert said.returncode == 0, said.stderr
    path = place.home / "pipelines" / f"{created['pipeline']}.yaml"
    assert '"kind": "int8"' in path.read_text()  # which stays the JSON that it was


def test_commands_do_the_same_on_a_server(place: Place) -> None:
    write_texts(place.home, "more.csv")
    place.write("more.json", '{"model": "hashing", "data_path": "more.csv"}')
    server = ("--server", place.server)
    elsewhere = {**place.environment, "EMBEDDING_PIPELINES_HOME": str(place.home / "google-bert")}
    here = place._replace(environment=elsewhere)  # whose own folder has no pipelines
    said = here.type(f"{PROGRAM} create --config more.json", *server)
    assert said.returncode == 0, said.stderr
    said = here.type(f"{PROGRAM} optimize --pipeline-id more --method int8 --json", *server)
    assert said.returncode == 0, said.stdout
    (run,) = check_envelope(said.stdout)["results"]
    assert (run["status"], run["result"]["release"]) == ("succeeded", 2)
    said = here.type(f"{PROGRAM} run more", *server)
    assert said.returncode == 0, said.stderr
    said = here.type(f"{PROGRAM} list --filter active", *server)
    assert "more" in said.stdout
    said = here.type(f"{PROGRAM} metrics", *server)
    assert said.returncode == 0, said.stderr
    said = here.type(f"{PROGRAM} metrics --json", *server)
    assert check_envelope(said.stdout)["results"]
    said = here.type(f"{PROGRAM} delete --pipeline-id more --yes", *server)
    assert said.returncode == 0, said.stderr
    said = here.type(f"{PROGRAM} delete more --yes", *server)
    assert said.returncode == 1
    assert "There is no pipeline 'more'" in said.stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("create --config nothing.yaml", "cannot be read"),
        ("create --config wrong.yaml", "Invalid config"),
        ("optimize --pipeline-id 999 --method pca --dimensions 128", "999"),
        ("deploy --pipeline-id 999 --endpoint http://my-server:8080", "999"),
        ("deploy --pipeline-id 123 --endpoint nowhere", "endpoint"),
        ("list --filter activ", "active"),
    ],
)
def test_a_command_that_fails_has_an_exit_code(place: Place, line: str, words: str) -> None:
    place.write("wrong.yaml", '{"model": "no-such", "data_path": "data.csv"}')
    for more in ((), ("--server", place.server)):
        said = place.type(f"{PROGRAM} {line}", *more)
        assert said.returncode == 1
        assert words in said.stderr
        assert "Traceback" not in said.stderr


def test_statuses_and_bodies_of_errors(place: Place) -> None:
    path = "/api/embedding-pipelines"
    for response, status, words in (
        (place.ask("POST", path, json={"model": "no-such"}), 400, "Invalid config"),
        (place.ask("GET", path, headers={"Authorization": "Bearer wrong"}), 401, "key"),
        (place.ask("GET", f"{path}/999"), 404, "999"),
    ):
        assert response.status_code == status
        assert list(response.json()) == ["error"]
        assert words in response.json()["error"]


def test_the_snippets(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The contract's Python, with the host, and with the bracket that is missing there."""
    monkeypatch.setenv("EMBEDDING_API_KEY", KEY)
    run: Callable[[str, dict[str, Any]], None] = exec
    names: dict[str, Any] = {"os": os, "place": place}
    run(
        "from embedding_pipelines import EmbeddingPipelines\n"
        "client = EmbeddingPipelines(api_key=os.environ['EMBEDDING_API_KEY'], "
        "server=place.server)",
        names,
    )
    names["config"] = {"model": "no-such", "data_path": "data.csv"}
    run(
        "try:\n"
        "  response = client.create_pipeline(config)\n"
        "except Exception as e:\n"
        '  if "Invalid config" in str(e):\n'
        '    print("Fix config and retry")\n',
        names,
    )
    assert capsys.readouterr().out == "Fix config and retry\n"
    names["config"] = {"model": "bert", "data_path": "data.csv"}
    run("response = client.create_pipeline(config)", names)
    assert names["response"].pipeline == "data"
    names["client"].close()
