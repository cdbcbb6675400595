"""A key is in the environment and on its way to the service, and nowhere else: no file, no output,
no message.

Whole runs against a server that demands the key and repeats it in its refusals; a good and a bad one by the real
command, the others in this process.
"""

import dataclasses
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from embedding_pipelines.environment import HOME_VARIABLE
from embedding_pipelines.errors import ConfigError, Unreachable
from embedding_pipelines.orchestration.resources import ModelResource
from embedding_pipelines.providers.common.http import RemoteModel
from embedding_pipelines.providers.common.replies import list_at
from embedding_pipelines.providers.openai import Openai
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines_tests.chain import write_csv, write_pipeline
from embedding_pipelines_tests.commands import EXECUTABLE, Command
from embedding_pipelines_tests.embedding.service import DIALECT
from embedding_pipelines_tests.providers.wire import Fault, WireServer, serve

KEY = "sk-proj-4711-" + "Zq8Wm2Xv7Lr5" * 3
PARTS = [KEY, KEY[:24], KEY[-24:]]  # half a key helps who wants the whole one
PIPELINE = """\
source: {{kind: csv, path: 'data/*.csv', id: id, text: [title], metadata: [cat]}}
model:
  provider: openai
  base_url: {url}/v1
  model: little
  dimensions: 64
  api_key_env: MY_KEY
partitions: 2
"""
ROWS = [(number, f"a tale of {number} foxes and {number + 7} hens", "tale") for number in range(40)]
POISON = (99, "a tale that the service refuses", "tale")


class Home:
    """A home folder and all that commands have printed there."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, command: Command) -> None:
        self.home, self.state, self.printed = folder / "home", folder / "state", ""
        self._patch, self._command = patch, command
        patch.delenv("DAGSTER_HOME", raising=False)
        patch.setenv(HOME_VARIABLE, str(self.home))
        patch.setenv("XDG_STATE_HOME", str(self.state))
        patch.setenv("MY_KEY", KEY)

    def command(self, *arguments: str, code: int = 0, key: str = KEY) -> str:
        """What a command printed; it must have ended with `code`."""
        self._patch.setenv("MY_KEY", key)
        ended = self._command(*arguments)
        self.printed += ended.out + ended.err
        assert ended.code == code, ended.err + ended.out
        return ended.err + ended.out

    def program(self, *arguments: str, code: int = 0) -> str:
        """The same, in a process of its own."""
        self._patch.setenv("MY_KEY", KEY)
        ended = subprocess.run(
            [EXECUTABLE, *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        self.printed += ended.stdout + ended.stderr
        assert ended.returncode == code, ended.stderr + ended.stdout
        return ended.stdout + ended.stderr

    def holders(self) -> list[str]:
        """Where the key or a good part of it is to be read."""
        found = ["what was printed"] if any(part in self.printed for part in PARTS) else []
        files = [
            path
            for folder in (self.home, self.state)
            for path in folder.rglob("*")
            if path.is_file()
        ]
        assert len(files) >= 20  # Dagster's instance is among them
        for path in files:
            content = path.read_bytes()
            if path.suffix == ".parquet":
                content += str(pq.read_table(path).to_pylist()).encode()
            if any(part.encode() in content for part in PARTS):
                found.append(str(path.relative_to(self.home.parent)))
        return found


@pytest.fixture
def server() -> Iterator[WireServer]:
    with serve(dataclasses.replace(DIALECT, key=f"Bearer {KEY}")) as running:
        yield running


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


@pytest.fixture
def at(
    tmp_path: Path, server: WireServer, monkeypatch: pytest.MonkeyPatch, command: Command
) -> Home:
    at = Home(tmp_path, monkeypatch, command)
    write_pipeline(at.home, "tales", PIPELINE.format(url=server.url))
    write_csv(at.home, "a.csv", ROWS)
    return at


@pytest.mark.slow
def test_runs_that_do_well_and_that_fail_leave_no_trace_of_the_key(
    at: Home, server: WireServer
) -> None:
    at.command("plan", key="")
    assert not server.requests
    at.program("run")
    assert server.headers[-1]["authorization"] == f"Bearer {KEY}"
    at.command("search", "tales", "seven foxes")
    at.command("search", "tales", "seven foxes", "--json")

    server.faults.append(Fault("status", 401, f"Incorrect API key provided: {KEY}."))
    assert "Incorrect API key provided: ***." in at.command("search", "tales", "hens", code=1)
    write_csv(at.home, "b.csv", [(77, "a tale of one bear", "tale")])
    server.chance = lambda _: Fault("status", 401, f"The key {KEY} has expired.")
    assert "The key *** has expired. Check the key in MY_KEY" in at.program("run", code=1)
    at.command("run", "--json", code=1)

    server.chance = lambda _: Fault(
        "status", 400, f"{'x' * 280} {KEY} may not do this."
    )  # cut in the key's middle
    at.command("run", code=1)
    server.chance = lambda _: None
    server.poisoned = lambda text: f"No vector for {KEY}." if text == POISON[1] else None
    write_csv(at.home, "c.csv", [POISON])
    at.command("run")
    reasons = pq.read_table(next(at.home.rglob("embeddings/rejected.parquet")))[
        "reason"
    ].to_pylist()
    assert ["No vector for ***." in reason for reason in reasons] == [True]

    for words in (
        ["plan"],
        ["plan", "--json"],
        ["status", "--json"],
        ["models"],
        ["models", "--json"],
        ["validate"],
    ):
        at.command(*words)
    assert at.holders() == []


@pytest.mark.parametrize(
    ("key", "said"),
    [(f"{KEY}\n{KEY}", "MY_KEY holds line breaks"), ("", "MY_KEY is not set")],
)
def test_a_key_that_no_header_can_hold_is_told_without_it(at: Home, key: str, said: str) -> None:
    assert said in at.command("run", code=1, key=key)
    assert at.holders() == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            f"api_key_env: {KEY}",
            "model.api_key_env: is not the name of an environment variable. Write one",
        ),
        (f"api_key_env: '{KEY} '", "model.api_key_env: is not the name of an environment variable"),
        ("api_key_env: ${MY_KEY}", "model.api_key_env: is not the name of an environment variable"),
        ("api_key_env: ''", "model.api_key_env: is not the name of an environment variable"),
        (f"api_key: {KEY}", "model.api_key: is no option here; did you mean 'api_key_env'?"),
        ("api_key: ${MY_KEY}", "model.api_key: is no option here; did you mean 'api_key_env'?"),
        (f"token: {KEY}", "model.token: is no option here"),
        (
            f"base_url: http://user:{KEY}@localhost/v1",
            "model.base_url: an address holds no password",
        ),
        (f"base_url: https://{KEY}@localhost/v1", "model.base_url: an address holds no password"),
        (
            f"base_url: ftp://user:{KEY}@localhost/v1",
            "model.base_url: an address holds no password",
        ),
        (f"base_url: http://user:{KEY}", "model.base_url: the port of the address is not a number"),
        (f"base_url: {KEY}", "model.base_url: is not the address of a service"),
    ],
)
def test_a_key_in_a_pipeline_file_is_refused_and_not_repeated(
    line: str, said: str, command: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    option = line.partition(":")[0]
    kept = [
        row
        for row in PIPELINE.format(url="http://localhost:1").splitlines()
        if not row.startswith(f"  {option}:")
    ]
    kept.insert(2, f"  {line}")
    write_pipeline(home, "tales", "\n".join(kept))
    for words in (["validate"], ["run"], ["plan"], ["status"], ["search", "tales", "x"]):
        for ending in ([], ["--json"]):
            ended = command(*words, *ending)
            assert ended.code == 1
            assert said in ended.out + ended.err
            assert not [part for part in PARTS if part in ended.out + ended.err]
    listed_all = command("list", "--json")
    assert said in listed_all.out
    assert KEY not in listed_all.out


@pytest.mark.parametrize("name", ["MY_KEY", "_k", "k9", "OPENAI_API_KEY"])
def test_names_of_variables_are_taken(name: str) -> None:
    assert (
        Openai(
            base_url="http://localhost:1/v1", model="m", dimensions=8, api_key_env=name
        ).api_key_env
        == name
    )


@pytest.mark.parametrize("name", ["", "9k", "my-key", "a b", "K\n", "é", KEY])
def test_what_is_no_name_of_a_variable_is_refused(name: str) -> None:
    with pytest.raises(
        ValidationError, match="is not the name of an environment variable"
    ) as caught:
        Openai(base_url="http://localhost:1/v1", model="m", dimensions=8, api_key_env=name)
    [detail] = caught.value.errors()
    assert not name or name not in detail["msg"]


def test_an_answer_without_vectors_is_quoted_without_a_part_of_the_key(
    server: WireServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    options = Openai(base_url=f"{server.url}/v1", model="m", dimensions=8, api_key_env="MY_KEY")
    service: RemoteModel = server.open(options)
    for padding in range(240, 301, 4):
        with pytest.raises(Unreachable, match="without vectors") as caught:
            list_at(service, {"error": "x" * padding + KEY}, "data")
        assert KEY[:6] not in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"api_key": KEY}, {"api_key_env": KEY}, {"base_url": f"http://a:{KEY}@b/v1"}]
)
def test_a_wrong_override_of_a_provider_in_dagster_is_told_without_its_value(
    options: dict[str, str],
) -> None:
    spec = PipelineSpec.model_validate(
        {"name": "p", "source": {"kind": "csv", "path": "a.csv"}, "model": "hashing"}
    )
    resource = ModelResource(kind="openai", options={"model": "m", "dimensions": 8, **options})
    problem = f"model for pipeline 'p' is wrong: model.openai.{next(iter(options))}: "
    with pytest.raises(ConfigError, match=problem) as caught:
        resource.choose(spec)
    assert KEY not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


CUSTOM = """\
source: {kind: csv, path: 'data/${A_FOLDER}/*.csv', id: id, text: [title], metadata: [cat]}
model: {provider: custom, cls: 'mine:Mine', options: {word: '${MY_KEY}', more: ['x-${MY_KEY}']}}
description: Asks https://example.org/${MY_KEY}
partitions: 2
evaluation: {known_items: 0}
"""
MINE = """\
import numpy as np
class Mine:
    dimensions = 8
    def __init__(self, word, more):
        assert word.startswith("sk-") and more == ["x-" + word], "no key"
    def embed(self, texts, input_type):
        return [np.random.default_rng(len(text)).normal(size=8) for text in texts]
"""


@pytest.mark.slow
def test_a_variable_in_options_is_stored_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    at = Home(tmp_path, monkeypatch, command)
    write_pipeline(at.home, "own", CUSTOM)
    write_csv(at.home, "in/a.csv", [(1, "one", "x")])
    monkeypatch.setenv("A_FOLDER", "in")
    (at.home / "mine.py").write_text(MINE)
    at.program("run", "own")
    at.command("search", "own", "one")
    at.command("status", "own")
    at.command("run", "own")
    assert at.holders() == []
    record = (at.home / "data" / "warehouse" / "pipelines" / "own" / "releases.json").read_text()
    assert "'more': ['x-${MY_KEY}']" in str(json.loads(record))
    assert "data/${A_FOLDER}/*.csv" in record
    assert "example.org/${MY_KEY}" in record
    assert "no key" in at.command("search", "own", "one", code=1, key="")
