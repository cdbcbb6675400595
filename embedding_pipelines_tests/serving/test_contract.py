"""The commands, calls and snippets of the API's contract, as they are written there but for the host
and the program's name, against a server in a process of its own.

`bert` is a small network of BERT's kind with random weights, in the folder where the model would be.
"""

import itertools
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import httpx2
import pytest

from embedding_pipelines import EmbeddingPipelines
from embedding_pipelines.files import write_json
from embedding_pipelines_tests.buckets import TestBucket, new_bucket
from embedding_pipelines_tests.chain import write_csv
from embedding_pipelines_tests.commands import EXECUTABLE, Command, check_envelope
from embedding_pipelines_tests.page import CLIENT, ROOT, blocks_of, steps_of
from embedding_pipelines_tests.providers.test_hf_models import bert_tokenizer, network
from embedding_pipelines_tests.serving.processes import serving

KEY = "your_key_here"
PROGRAM = "openclaw embedding-pipelines"  # as the contract calls it
HOST, MY_SERVER = "http://api.openclaw.com", "http://my-server:8080"
SAGEMAKER = """\
sagemaker:
  role: arn:aws:iam::123456789012:role/serve
  image: 123456789012.dkr.ecr.us-east-1.amazonaws.com/embedding-pipelines:0.1
  bucket: {bucket}/bundles
"""
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
    """A home folder, which is also where commands are typed, its server, and one to deploy to."""

    home: Path
    server: str
    other: str  # the contract's http://my-server:8080
    bucket: TestBucket  # on a server that also plays SageMaker
    environment: dict[str, str]

    def type(self, line: str, *more: str) -> subprocess.CompletedProcess[str]:
        """Type a command of the contract."""
        assert line.startswith(f"{PROGRAM} ")
        line = line.replace(MY_SERVER, self.other)
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
def place(tmp_path_factory: pytest.TempPathFactory, s3_address: str) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("contract")
    save_bert(home)
    for name in ("data.csv", "text_data.csv"):
        write_texts(home, name)
    number_next(home, 123)
    with pytest.MonkeyPatch.context() as patch:
        bucket = new_bucket(s3_address, patch)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("EMBEDDING_API_KEY", KEY)
        patch.setenv("EMBEDDING_PIPELINES_HOME", str(home))
        patch.delenv("DAGSTER_HOME", raising=False)
        (home / "deploy.yaml").write_text(SAGEMAKER.format(bucket=bucket.uri))
        with (
            serving(home, key=KEY) as server,
            serving(tmp_path_factory.mktemp("my-server"), key=KEY) as other,
        ):
            yield Place(home, server, other, bucket, dict(os.environ))


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


def test_deploy_to_a_server(place: Place) -> None:
    said = place.type(
        "openclaw embedding-pipelines deploy --pipeline-id 123 --endpoint http://my-server:8080"
    )
    assert said.returncode == 0, said.stderr
    answer = httpx2.post(
        f"{place.other}/search",
        json={"query": "cat dog fox", "k": 1},
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    (hit,) = answer.json()["hits"]  # one of many: the small network knows few words
    assert hit["score"] > 0.99
    reply = place.ask("GET", "/api/embedding-pipelines?filter=deployed").json()
    assert [each["endpoints"] for each in reply["pipelines"]] == [[place.other]]
    refused = place.ask("DELETE", "/api/embedding-pipelines/123")
    assert refused.status_code == 409
    assert "Undeploy it first" in refused.json()["error"]


def test_example_2(place: Place) -> None:
    def sagemaker(action: str) -> list[Any]:
        aws = boto3.client("sagemaker", "us-east-1", endpoint_url=place.bucket.address)
        found: list[Any] = getattr(aws, f"list_{action}")()[
            "".join(map(str.title, action.split("_")))
        ]
        return found

    said = place.type(
        "openclaw embedding-pipelines deploy --pipeline-id 456 "
        "--endpoint https://sagemaker-endpoint.aws.com"
    )
    assert said.returncode == 0, said.stderr
    assert [each["EndpointName"] for each in sagemaker("endpoints")] == ["sagemaker-endpoint"]
    with place.client() as client:
        run = client.wait(client.undeploy(456))
        removed = run.result["removed"]
        assert isinstance(removed, list)
        assert removed[0] == "endpoint sagemaker-endpoint"
        assert sagemaker("endpoints") == sagemaker("models") == []

        client.wait(client.deploy(456, "https://sagemaker-endpoint.aws.com"))
        assert len(sagemaker("endpoints")) == 1
    said = place.type(f"{PROGRAM} undeploy --pipeline-id 456")
    assert said.returncode == 0, said.stderr
    assert "removed endpoint sagemaker-endpoint" in said.stdout
    assert sagemaker("endpoints") == sagemaker("models") == sagemaker("endpoint_configs") == []


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
    said = here.type(f"{PROGRAM} rollback more", *server)
    assert said.stdout.startswith("more: live release 2 -> 1 (150 rows)\n"), said.stderr
    said = here.type(f"{PROGRAM} rollback more --to 7", *server)
    assert (said.returncode, "has no release 7; it has 1, 2" in said.stderr) == (1, True)
    said = here.type(f"{PROGRAM} release more --force --reason so", *server)
    assert (said.returncode, "more: release 2 " in said.stdout) == (0, True), said.stderr
    place.write("google-bert/new.jsonl", '{"id": "new", "text": "lamp lamp"}\n')
    said = here.type(f"{PROGRAM} push more {place.home}/google-bert/new.jsonl", *server)
    assert said.stdout == "more: pushed 1 document, 1 chunk\n", said.stderr
    said = here.type(f"{PROGRAM} plan more", *server)
    assert said.stdout.startswith("more: 1 new, 150 rows unchanged\n"), said.stderr
    said = here.type(f"{PROGRAM} forget more --id new --yes", *server)
    assert said.stdout.startswith("more: forgot 1 document; release 3 is live\n"), said.stderr
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
    ("line", "words", "code"),
    [
        ("create --config nothing.yaml", "cannot be read", 1),
        ("create --config wrong.yaml", "Invalid config", 1),
        ("optimize --pipeline-id 999 --method pca --dimensions 128", "999", 1),
        ("deploy --pipeline-id 999 --endpoint http://my-server:8080", "999", 1),
        ("deploy --pipeline-id 123 --endpoint ftp://nowhere", "endpoint", 1),
        ("list --filter activ", "active", 2),  # no such value of an option
    ],
)
def test_a_command_that_fails_has_an_exit_code(
    place: Place,
    line: str,
    words: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place.write("wrong.yaml", '{"model": "no-such", "data_path": "data.csv"}')
    monkeypatch.chdir(place.home)
    command = Command(monkeypatch, capsys)
    for more in ((), ("--server", place.server)):
        said = command(*shlex.split(line.replace(MY_SERVER, place.other)), *more)
        assert said.code == code
        assert words in said.err
        assert "Traceback" not in said.err


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


def test_the_client_of_the_page(place: Place) -> None:
    """It says what it prints, but for the model, which is not on every machine."""
    page = blocks_of((ROOT / "docs" / "serving.md").read_text(encoding="utf-8"))
    (block,) = [each for each in page if CLIENT in each.text]
    (step,) = steps_of([block], place.home)
    place.write("notes.csv", "text\nA cat sleeps.\nThe court ruled.\n")
    program = block.text.replace(
        'api_key=os.environ["EMBEDDING_API_KEY"]', f'"{KEY}", "{place.server}"'
    )
    program = program.replace("minilm", "hashing")
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert run.stdout.splitlines() == step.expected, run.stderr


def test_the_config_format(place: Place) -> None:
    """A pipeline without files, which programs feed."""
    config = {"model": "bert", "input_type": "text", "output_dim": 768}
    place.write("config.json", json.dumps(config))
    said = place.type(f"{PROGRAM} create --config config.json")
    assert said.returncode == 0, said.stderr
    reply = place.ask("POST", "/api/embedding-pipelines", json=config)
    assert (reply.status_code, reply.json()["pipeline"]) == (201, "bert")
    reply = place.ask("POST", "/api/embedding-pipelines", json={**config, "output_dim": 100})
    assert reply.status_code == 400
    assert "output_dim is 100, but model and compression give 768" in reply.json()["error"]


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
    call = """\
import requests
response = requests.post('http://api.openclaw.com/api/embedding-pipelines/deploy', \
json={"id": 123, "endpoint": "http://my-server:8080"}, \
headers={"Authorization": f"Bearer {os.environ['EMBEDDING_API_KEY']}"})
"""
    run(call.replace(HOST, place.server).replace(MY_SERVER, place.other), names)
    assert names["response"].status_code == 202
    assert ended(place, names["response"].json())["status"] == "succeeded"
    names["config"] = {"model": "bert", "data_path": "data.csv"}
    run("response = client.create_pipeline(config)", names)
    assert names["response"].pipeline == "data"
    names["client"].close()
