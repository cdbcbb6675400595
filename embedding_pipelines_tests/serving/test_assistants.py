"""The tools of an assistant, asked through the protocol's own client."""

import asyncio
import json
import os
import shlex
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import yaml
from mcp import StdioServerParameters
from mcp.client import Client
from mcp.client.stdio import stdio_client
from mcp.types import CallToolResult, TextContent
from typer.main import get_command

from embedding_pipelines.access import OPERATOR, Principals
from embedding_pipelines.cli.main import app
from embedding_pipelines.files import write_json
from embedding_pipelines.serving.assistants import assistants_server
from embedding_pipelines.serving.auth import Keys
from embedding_pipelines.serving.server import REFRESH_SECONDS, Server
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.commands import EXECUTABLE
from embedding_pipelines_tests.conftest import HASHING
from embedding_pipelines_tests.serving.homes import build

SKILL = Path(__file__).parents[2] / "skills" / "embedding-pipelines" / "SKILL.md"


def ask(
    home: Path, work: Callable[[Client], Coroutine[Any, Any, Any]], principals: Principals = None
) -> Any:
    """What `work` comes to with a client of a home's tools."""

    async def use() -> Any:
        async with Client(assistants_server(Server(home, Keys()), principals)) as client:
            return await work(client)

    return asyncio.run(use())


def call(home: Path, name: str, **arguments: Any) -> CallToolResult:
    return ask(home, lambda client: client.call_tool(name, arguments))  # type: ignore[no-any-return]


def said(result: CallToolResult) -> str:
    return "".join(part.text for part in result.content if isinstance(part, TextContent))


def test_there_are_four_tools_and_each_says_what_it_does(built_home: Path) -> None:
    tools = ask(built_home, lambda client: client.list_tools()).tools
    assert {tool.name for tool in tools} == {"search", "list", "status", "run"}
    assert all(tool.description and tool.annotations for tool in tools)
    assert {tool.name for tool in tools if not tool.annotations.read_only_hint} == {"run"}


def test_a_search_finds_passages_with_their_documents(built_home: Path) -> None:
    result = call(built_home, "search", pipeline="things", query="red fox", k=1)
    assert not result.is_error
    assert result.structured_content is not None
    (hit,) = result.structured_content["hits"]
    assert (hit["document_id"], hit["text"], hit["metadata"]) == ("1", "red fox", {"cat": "animal"})


def test_an_assistant_reads_for_its_principals(tmp_path: Path) -> None:
    home = build(tmp_path)
    section = "permissions: {kind: csv, path: acl.csv, id: document}\n"
    write_pipeline(home, "things", HASHING + section)
    (home / "acl.csv").write_text("document,principals\n2,ann\n")

    async def work(client: Client) -> tuple[CallToolResult, CallToolResult]:
        found = await client.call_tool("search", {"pipeline": "things", "query": "red fox"})
        return found, await client.call_tool("status", {"pipeline": "things"})

    found, status = ask(home, work, ["ann"])
    assert [hit["document_id"] for hit in found.structured_content["hits"]] == ["2"]
    assert "freshness" not in said(status)
    found, status = ask(home, work)
    assert found.is_error
    assert "say for whom it is read" in said(found)
    assert "freshness" not in said(status)
    (home / "acl.csv").write_text("document,principals\n2,ann\nsecret\n")
    for principals, is_told in ((["ann"], False), (OPERATOR, True)):
        found, _ = ask(home, work, principals)
        assert found.is_error != is_told
        assert "acl" not in said(found)
    write_pipeline(home, "held_back", HASHING + section)
    folder = Warehouse(home).pipeline("held_back")
    folder.activity.parent.mkdir(parents=True)
    write_json(folder.activity, {"problem": "'secret fox' cannot be embedded."})
    (home / "acl.csv").write_text("document,principals\n2,ann\n")

    async def search(client: Client) -> CallToolResult:
        return await client.call_tool("search", {"pipeline": "held_back", "query": "red fox"})

    assert said(ask(home, search, ["ann"])).endswith("Pipeline 'held_back' has no release yet.")
    assert "'secret fox' cannot" in said(ask(home, search, OPERATOR))


def test_a_search_is_one_of_the_newest_release(tmp_path: Path) -> None:
    home = build(tmp_path)

    async def search(client: Client) -> list[Any]:
        answers = []
        for _ in range(2):
            result = await client.call_tool("search", {"pipeline": "things", "query": "grey wolf"})
            answers.append(result.structured_content)
            write_csv(home, "a.csv", [(1, "red fox", "animal"), (3, "grey wolf", "animal")])
            await asyncio.to_thread(run_steps, home, "things")
            await asyncio.sleep(REFRESH_SECONDS)
        return answers

    before, after = ask(home, search)
    assert (before["release"], after["release"]) == (1, 2)
    assert after["hits"][0]["text"] == "grey wolf"


def test_pipelines_and_how_they_stand_are_told(tmp_path: Path) -> None:
    home = build(tmp_path)
    write_pipeline(home, "broken", "source: {kind: csv}\n")
    rows = call(home, "list").structured_content
    assert rows is not None
    broken, things = rows["result"]
    assert (broken["pipeline"], "path" in broken["problem"]) == ("broken", True)
    assert (things["pipeline"], things["live_release"], things["status"]) == ("things", 1, "active")
    status = call(home, "status", pipeline="things").structured_content
    assert status is not None
    assert status["live_rows"] == 2


@pytest.mark.parametrize(
    ("tool", "arguments", "words"),
    [
        ("search", {"pipeline": "nobody", "query": "fox"}, "nobody"),
        ("search", {"pipeline": "things", "query": " "}, "empty"),
        ("search", {"pipeline": "things", "query": "fox", "filter": "colour = 1"}, "colour"),
        (
            "search",
            {"pipeline": "things", "query": "fox", "k": 51},
            "k: must be 50 or less, not 51",
        ),
        ("search", {"pipeline": ["x"]}, "takes: pipeline: must be text; query: is missing."),
        ("status", {"pipeline": "../things"}, "things"),
        ("run", {"pipeline": "nobody"}, "nobody"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    built_home: Path, tool: str, arguments: dict[str, Any], words: str
) -> None:
    result = call(built_home, tool, **arguments)
    assert result.is_error
    assert words in said(result)
    assert "\n" not in said(result)
    assert "pydantic" not in said(result)
    assert "Traceback" not in said(result)


@pytest.mark.slow
def test_it_speaks_on_standard_input_and_output_and_starts_a_run(tmp_path: Path) -> None:
    home = build(tmp_path)
    write_csv(home, "b.csv", [(3, "grey wolf", "animal")])
    environment = {**os.environ, "EMBEDDING_PIPELINES_HOME": str(home)}
    parameters = StdioServerParameters(command=EXECUTABLE, args=["mcp"], env=environment)

    async def use() -> dict[str, Any]:
        async with Client(stdio_client(parameters)) as client:
            begun = await client.call_tool("run", {"pipeline": "things"})
            assert not begun.is_error, said(begun)
            while True:
                status = await client.call_tool("status", {"pipeline": "things"})
                assert status.structured_content is not None
                if status.structured_content["live_release"] == 2:
                    break
                await asyncio.sleep(0.5)
            found = await client.call_tool("search", {"pipeline": "things", "query": "grey wolf"})
            assert found.structured_content is not None
            return found.structured_content

    answer = asyncio.run(use())
    assert answer["hits"][0]["document_id"] == "3"


def test_the_skill_has_the_fields_of_its_kind_and_commands_that_there_are() -> None:
    _, front, body = SKILL.read_text(encoding="utf-8").split("---\n", 2)
    fields = yaml.safe_load(front)
    assert fields["name"] == "embedding-pipelines"
    assert (fields["cluster"], fields["scope"]) == ("aimlops", "general")
    assert fields["tags"] == ["ai", "ml", "embeddings", "pipelines"]
    empty = ("dependencies", "composes", "similar_to", "called_by")
    assert [fields[name] for name in empty] == [[], [], [], []]
    assert fields["authorization_required"] is False
    assert fields["model_hint"] == "claude-sonnet"
    assert fields["embedding_hint"] == "ai ml embeddings pipelines"
    commands = [
        line.split("`")[1] for line in body.splitlines() if "| `embedding-pipelines " in line
    ]
    assert len(commands) > 10
    group: Any = get_command(app)
    for command in commands:
        _, name, *words = shlex.split(command)
        options = {option for each in group.commands[name].params for option in each.opts}
        assert {word for word in words if word.startswith("-")} <= options, command
    assert json.dumps(fields)
