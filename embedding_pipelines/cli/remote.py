"""What commands do on a server (`--server URL`), through the client of programs."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from embedding_pipelines.cli.common import Outcomes, Output, Problem
from embedding_pipelines.cli.terminal import (
    TerminalProgress,
    make_console,
    print_hits,
    print_statistics,
    say,
)
from embedding_pipelines.errors import (
    ConfigError,
    DocumentError,
    EmbeddingPipelinesError,
    counted,
)

if TYPE_CHECKING:
    from embedding_pipelines.plan import Plan
    from embedding_pipelines.serving.client import EmbeddingPipelines
    from embedding_pipelines.serving.wire import CreatedReply, DocumentsReceipt, RunReply

log = logging.getLogger(__name__)

SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
MEGABYTE = 1e6
DOCUMENT = re.compile(r"\bdocuments\[(\d+)\]")  # as the server calls one of a request
PUSH_SECONDS = 600.0  # to embed all documents of a request
STEP = ("step", "changed", "seconds")  # of a step's row: what is no statistic
NO_REASON = "The server says no reason."


def open_client(server: str, timeout_seconds: float = 60.0) -> "EmbeddingPipelines":
    """A client of a server, with the key in $EMBEDDING_API_KEY."""
    from embedding_pipelines.serving.client import EmbeddingPipelines

    return EmbeddingPipelines(server=server, timeout_seconds=timeout_seconds)


def rows(server: str, filter: str) -> list[dict[str, Any]]:
    """The pipelines of a server, as `list` shows them."""
    with open_client(server) as client:
        return [each.model_dump(mode="json") for each in client.list(filter)]


def status(server: str, names: Sequence[str] | None) -> Outcomes:
    """As the command `status`."""
    from embedding_pipelines.serving.wire import NotFound

    problems = list[Problem]()
    with open_client(server) as client:
        rows = [] if names else client.list()
        for name in dict.fromkeys(names or ()):
            try:
                rows.append(client.get(name))
            except NotFound as error:
                problems.append(Problem(str(error), name))
    if not rows and not problems:
        raise ConfigError(f"There are no pipelines on {server}.")
    problems += [Problem(row.problem, row.pipeline) for row in rows if row.problem]
    for number, row in enumerate(row for row in rows if not row.problem):
        values = row.model_dump(mode="json")
        statistics = {name: values[name] for name in values if values[name] not in (None, [])}
        for name in ("pipeline", "states", "up_to_date", "source_is_released"):
            statistics.pop(name, None)  # said by the title, and in words
        title = f"\n{row.pipeline}" if number else row.pipeline
        yield Output([values], partial(print_statistics, make_console(), title, statistics))
    yield from problems


def release(server: str, name: str, reason: str) -> tuple[dict[str, Any], str]:
    """What `release` has done, as `run` says it, and the error that ended it, if one did. Raises
    EmbeddingPipelinesError if no step was done."""
    with open_client(server) as client:
        run = _wait(client, client.release(name, reason))
    if "steps" not in run.result:
        raise EmbeddingPipelinesError(run.error or NO_REASON)
    return _show_steps(run), run.error or ""


def runs(
    server: str, names: Sequence[str] | None
) -> "Iterator[tuple[dict[str, Any], str] | Output | Problem]":
    """What runs of pipelines have done, one after the other, of all without names, and the error that
    ended each, if one did; in place of it why no step was done, or that an older server, which names
    no steps, has done it."""
    with open_client(server) as client:
        for name in dict.fromkeys(names or _active(client)):
            run = _wait(client, client.run(name))
            if "steps" in run.result:
                yield _show_steps(run), run.error or ""
            elif run.status == "succeeded":
                yield _summary(run)
            else:
                yield Problem(f"{run.pipeline}: {run.error or NO_REASON}", run.pipeline)


def _active(client: "EmbeddingPipelines") -> list[str]:
    """The pipelines of a server. Raises ConfigError if there are none."""
    names = [each.pipeline for each in client.list() if each.status != "archived"]
    if not names:
        raise ConfigError(f"There are no pipelines on {client.server}.")
    return names


def _show_steps(run: "RunReply") -> dict[str, Any]:
    """The steps of a run on the terminal, as one that is done here shows them, and its result."""
    from embedding_pipelines.progress import StepReport

    result: dict[str, Any] = {
        "pipeline": run.pipeline,
        "run_id": run.run_id,
        "seconds": run.result["seconds"],
        "notes": run.result["notes"],
        "paused": None,
        "steps": run.result["steps"],
    }
    with TerminalProgress(make_console(), run.pipeline) as progress:
        for note in result["notes"]:
            progress.note(note)
        for row in result["steps"]:
            rest = {key: value for key, value in row.items() if key not in STEP}
            progress.finish(StepReport(row["step"], row["changed"], rest, seconds=row["seconds"]))
    return result


def rollback(server: str, name: str, to: int | None) -> dict[str, Any]:
    """What `rollback` has done."""
    with open_client(server) as client:
        run = _succeeded(_wait(client, client.rollback(name, to)))
    return {"pipeline": run.pipeline, **run.result}


def forget(
    server: str, name: str, ids: Sequence[str], sources: Sequence[str], undo: bool
) -> tuple[str, dict[str, Any]]:
    """The pipeline's name, and the receipt of `forget`; with `undo` how many may come back."""
    with open_client(server) as client:
        run = _succeeded(_wait(client, client.forget(name, ids, sources=sources, undo=undo)))
    return run.pipeline, run.result


def plans(server: str, names: Sequence[str] | None) -> "Iterator[Plan | Problem]":
    """What runs of pipelines would do, of all without names; in place of a plan why there is none."""
    from embedding_pipelines.plan import Plan
    from embedding_pipelines.serving.wire import NotFound

    with open_client(server) as client:
        for name in dict.fromkeys(names or _active(client)):
            try:
                run = _wait(client, client.plan(name))
            except NotFound as error:
                yield Problem(str(error), name)
                continue
            failed = run.status == "failed"
            problem = Problem(f"{run.pipeline}: {run.error}", run.pipeline)
            yield problem if failed else Plan(**cast("dict[str, Any]", run.result))


class RemotePusher:
    """Takes documents for a pipeline of a server, as `push.Pusher` does for one of this folder."""

    def __init__(self, server: str, name: str) -> None:
        self._client, self.pipeline = open_client(server, PUSH_SECONDS), name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def put(self, documents: Sequence[Any], place: Callable[[int], str]) -> "DocumentsReceipt":
        """Raises as `Pusher.put`."""
        from embedding_pipelines.push import check_document
        from embedding_pipelines.serving.wire import BadRequest

        for at, document in enumerate(documents):
            check_document(place(at), document)
        try:
            return self._receipt(self._client.push(self.pipeline, documents))
        except BadRequest as error:
            raise DocumentError(_with_places(str(error), len(documents), place)) from None

    def delete(self, ids: Sequence[str]) -> "DocumentsReceipt":
        return self._receipt(self._client.delete_documents(self.pipeline, ids))

    def withdraw(self, ids: Sequence[str]) -> "DocumentsReceipt":
        return self._receipt(self._client.withdraw(self.pipeline, ids))

    def _receipt(self, reply: "DocumentsReceipt") -> "DocumentsReceipt":
        self.pipeline = reply.pipeline
        return reply


def _with_places(text: str, count: int, place: Callable[[int], str]) -> str:
    """A server's sentence, with each of so many documents called by its place."""

    def place_of(match: re.Match[str]) -> str:
        at = int(match[1])
        return place(at) if at < count else match[0]  # else it is quoted from a document

    return DOCUMENT.sub(place_of, text)


def create(server: str, config: Mapping[str, Any]) -> "CreatedReply":
    """A pipeline of a configuration. Raises BadRequest with what is wrong with it."""
    with open_client(server) as client:
        return client.create_pipeline(config)


def optimize(
    server: str,
    name: str,
    methods: Sequence[str],
    dimensions: int | None,
    floor: float | None,
    max_ms: float,
) -> Outcomes:
    """As the command `optimize`."""
    with open_client(server) as client:
        start = partial(client.optimize, name, methods, dimensions, floor=floor, max_ms=max_ms)
        yield from _ended(client, start)


def compare(server: str, name: str, models: Sequence[str], documents: int) -> dict[str, Any]:
    """What `compare` measures on a server."""
    with open_client(server) as client:
        return client.wait(client.compare(name, models, documents)).result


def deploy(server: str, name: str, endpoint: str) -> Outcomes:
    """As the command `deploy`."""
    with open_client(server) as client:
        yield from _ended(client, partial(client.deploy, name, endpoint))


def undeploy(server: str, name: str, endpoint: str | None) -> Outcomes:
    """As the command `undeploy`."""
    with open_client(server) as client:
        yield from _ended(client, partial(client.undeploy, name, endpoint))


def delete(server: str, name: str, keep_file: bool) -> Outcomes:
    """As the command `delete`."""
    with open_client(server) as client:
        deleted = client.delete(name, keep_file)
    releases, size = counted(len(deleted.releases), "release"), deleted.size_bytes / MEGABYTE
    words = f"{deleted.pipeline}: deleted on {server}, {releases}, {size:,.1f} MB"
    yield Output([deleted.model_dump(mode="json")], partial(say, words))


def search(
    server: str,
    name: str,
    query: str | None,
    image: Path | None,
    like: list[str] | None,
    k: int,
    filter: str | None,
    mode: str | None,
    rerank: bool | None,
    cut: bool,
    principals: list[str] | None,
) -> Outcomes:
    """As the command `search`."""
    from embedding_pipelines.serving.wire import SearchAnswer

    with open_client(server) as client:
        answer = client.search(
            *(name, query, k, filter),
            image=image,
            like=like or None,
            mode=mode,
            rerank=rerank,
            truncate=cut,
            principals=principals,
        )
    assert isinstance(answer, SearchAnswer)  # of one query
    for note in answer.notes:
        log.warning("%s", note)
    values = answer.model_dump(mode="json")
    yield Output([values], lambda: print_hits(make_console(), answer))


def metrics(server: str) -> Outcomes:
    """What a server's `/metrics` says."""
    with open_client(server) as client:
        text = client.metrics()
    yield Output(list(_samples(text)), lambda: print(text, end=""))


def _ended(client: "EmbeddingPipelines", start: "Callable[[], RunReply]") -> Outcomes:
    """What long work says once it has ended."""
    run = _wait(client, start())
    yield _summary(run)
    if run.status == "failed":
        yield Problem(f"{run.pipeline}: {run.error}", run.pipeline)


def _summary(run: "RunReply") -> Output:
    """How long work ended, and what is live or gone by it."""
    release = run.result.get("release")
    live = f": release {release} is live" if release and run.kind != "deploy" else ""
    lines = [f"{run.pipeline}: {run.kind} {run.run_id} {run.status}{live}"]
    removed = run.result.get("removed")
    lines += [f"removed {what}" for what in removed] if isinstance(removed, list) else []
    return Output([run.model_dump(mode="json")], partial(say, *lines))


def _wait(client: "EmbeddingPipelines", run: "RunReply") -> "RunReply":
    """Long work, once it has ended, well or not."""
    from embedding_pipelines.serving.wire import RunFailed

    try:
        return client.wait(run)
    except RunFailed:
        return client.get_run(run)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Run {run.run_id} goes on on {client.server}.") from None


def _succeeded(run: "RunReply") -> "RunReply":
    """The same work, if it did well. Raises EmbeddingPipelinesError with the reason if it did not."""
    if run.status == "failed":
        raise EmbeddingPipelinesError(run.error or NO_REASON)
    return run


def _samples(text: str) -> Iterator[dict[str, Any]]:
    """The numbers of Prometheus' text format."""
    for line in text.splitlines():
        if line and not line.startswith("#"):
            match = SAMPLE.fullmatch(line)
            if match is None:
                raise EmbeddingPipelinesError(
                    f"The server's metrics have a line of no kind: {line}"
                )
            labels = dict(LABEL.findall(match[2] or ""))
            yield {"name": match[1], "labels": labels, "value": float(match[3])}
