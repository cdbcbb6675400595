"""A server of the Model Context Protocol, by which an assistant searches pipelines, sees how they
stand and starts runs."""

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal, ParamSpec, TypeVar

from pydantic import Field, ValidationError
from pydantic_core import to_jsonable_python

from embedding_pipelines import __version__
from embedding_pipelines.access import OPERATOR, Principals
from embedding_pipelines.errors import (
    EmbeddingPipelinesError,
    PermissionsLostError,
    describe_os_error,
    faults_in_words,
)
from embedding_pipelines.extras import need
from embedding_pipelines.releases import find_released
from embedding_pipelines.search import SearchResult
from embedding_pipelines.serving.searching import open_for
from embedding_pipelines.serving.server import Server
from embedding_pipelines.spec.ids import pipeline_ids
from embedding_pipelines.spec.load import find_pipeline, read_pipelines
from embedding_pipelines.status import pipeline_status

if TYPE_CHECKING:
    from mcp.server import MCPServer

log = logging.getLogger(__name__)

INSTRUCTIONS = (
    "Collections of documents that can be searched by meaning. `list` says which there are; `search` "
    "finds passages in one of them; `status` says how fresh it is; `run` brings it up to date."
)
MOST_HITS = 50  # an assistant reads all of them
Name = Annotated[str, Field(description="A pipeline's name, as `list` shows it.")]

Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")


def assistants_server(server: Server, principals: Principals = None) -> "MCPServer":
    """The tools over `server`, which is opened when the first client connects. Pipelines with
    permissions are read for `principals`."""
    tool_error = need("mcp.server.mcpserver.exceptions", "assistants").ToolError
    annotations_of = need("mcp.types", "assistants").ToolAnnotations

    @asynccontextmanager
    async def lifespan(_: "MCPServer") -> AsyncIterator[None]:
        await server.open()
        try:
            yield
        finally:
            await server.close()

    class Tools(need("mcp.server", "assistants").MCPServer):  # type: ignore[misc]
        async def call_tool(self, name: str, arguments: dict[str, Any], context: Any = None) -> Any:
            try:
                return await super().call_tool(name, arguments, context)
            except tool_error as error:
                if isinstance(error.__cause__, ValidationError):
                    raise tool_error(_faults(name, error.__cause__)) from error
                raise

    tools: MCPServer = Tools(
        "embedding-pipelines",
        instructions=INSTRUCTIONS,
        version=__version__,
        lifespan=lifespan,
        log_level="WARNING",
    )

    def tool(
        name: str, reads_only: bool
    ) -> Callable[[Callable[Parameters, Answer]], Callable[Parameters, Answer]]:
        """Offer a function, which runs in a thread; what a user can get wrong is answered in a
        sentence."""

        def offer(function: Callable[Parameters, Answer]) -> Callable[Parameters, Answer]:
            @functools.wraps(function)
            async def call(*arguments: Any, **options: Any) -> Answer:
                try:
                    await server.served()  # which takes up what is live now
                    return await asyncio.to_thread(function, *arguments, **options)
                except PermissionsLostError as error:
                    log.error("%s: %s", name, error)
                    words = str(error) if principals == OPERATOR else error.brief
                    raise tool_error(words) from error
                except EmbeddingPipelinesError as error:
                    raise tool_error(str(error)) from error
                except OSError as error:
                    raise tool_error(describe_os_error(error)) from error

            hints = annotations_of(
                read_only_hint=reads_only, destructive_hint=False, open_world_hint=False
            )
            tools.tool(name, annotations=hints)(call)
            return function

        return offer

    @tool("search", reads_only=True)
    def search(
        pipeline: Name,
        query: Annotated[str, Field(description="A question or a few words.")],
        k: Annotated[int, Field(ge=1, le=MOST_HITS, description="How many passages.")] = 10,
        filter: Annotated[
            str | None, Field(description="A condition on metadata, e.g. module = 'os'.")
        ] = None,
        mode: Annotated[
            Literal["vector", "text", "hybrid"] | None,
            Field(description="By meaning, by words or by both; else as the pipeline says."),
        ] = None,
    ) -> SearchResult:
        """Find the passages that answer a query best, best first, with their documents' ids and
        metadata."""
        name = find_released(server.warehouse, pipeline)
        searcher = open_for(server, name, principals, lambda: server.searcher(name))
        return searcher.search(query, k, filter, mode=mode, too_long="cut", principals=principals)

    @tool("list", reads_only=True)
    def list_pipelines() -> list[dict[str, Any]]:
        """List the pipelines: name, what it holds, documents, status, model, live release."""
        specs, broken = read_pipelines(server.home)
        ids = pipeline_ids(server.home)
        rows = [
            {"description": spec.description, **_brief(pipeline_status(spec, server.warehouse))}
            for spec in specs.values()
        ]
        rows += [
            {"id": ids.get(path.stem), "pipeline": path.stem, "problem": str(error)}
            for path, error in broken.items()
        ]
        return sorted(rows, key=lambda row: str(row["pipeline"]))

    @tool("status", reads_only=True)
    def status(pipeline: Name) -> dict[str, Any]:
        """Say how a pipeline stands: releases, documents, what changed in its source and is not
        released, what is held back and why, what went wrong."""
        spec = find_pipeline(pipeline, server.home)
        whole = pipeline_status(spec, server.warehouse)
        # What checks and runs say quotes documents, which may be for others.
        is_for_all = spec.permissions is None or principals == OPERATOR
        return _plain(whole) if is_for_all else _brief(whole)

    @tool("run", reads_only=False)
    def run(pipeline: Name) -> dict[str, Any]:
        """Start a run that brings a pipeline up to date with its source; it may take minutes.
        `status` says when it has ended. Checks decide whether its result is released."""
        spec = find_pipeline(pipeline, server.home)
        number = pipeline_ids(server.home).get(spec.name)
        reply = server.runs.start(spec.name, number, "run", {})
        return reply.model_dump(mode="json", include={"run_id", "pipeline", "status", "began_at"})

    return tools


def _faults(tool: str, error: ValidationError) -> str:
    """What is wrong with a call's arguments, in a sentence."""
    faults = faults_in_words(error.errors(include_url=False))
    return f"{tool} was called with other arguments than it takes: {faults}."


def _brief(status: dict[str, Any]) -> dict[str, Any]:
    names = ["id", "pipeline", "status", "documents", "pushed_waiting", "live_release"]
    names += ["released_at", "model"]
    return _plain({name: status.get(name) for name in names})


def _plain(status: dict[str, Any]) -> dict[str, Any]:
    """As JSON has it; what there is nothing to tell of is left out."""
    said = {name: value for name, value in status.items() if value not in (None, "")}
    return dict(to_jsonable_python(said, fallback=str))
