"""What a request waits for outside of the model's queue is counted, and who would wait for too long is
told so before anything is done for them."""

import asyncio
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from embedding_pipelines.search import Searcher
from embedding_pipelines.serving import admission
from embedding_pipelines.serving import server as server_module
from embedding_pipelines.serving.admission import Lag, Line
from embedding_pipelines.serving.auth import Keys
from embedding_pipelines.serving.models import ServedModel
from embedding_pipelines.serving.process import Process
from embedding_pipelines.serving.server import Server
from embedding_pipelines.serving.wire import TIMEOUT_HEADER
from embedding_pipelines_tests.serving.live import live

TEXT = "a word " * 100  # longer than what is counted in the event loop
REQUESTS = {
    "/v1/embeddings": f'{{"input": "{TEXT}", "input_type": "query"}}',
    "/search": '{"query": "fox", "mode": "text"}',
}


@pytest.mark.anyio
async def test_the_lag_is_what_the_event_loop_is_late_by() -> None:
    lag = Lag()
    watching = asyncio.create_task(lag.watch())
    await asyncio.sleep(0.01)
    time.sleep(0.3)  # the fault: the loop is busy
    assert lag.seconds > 0.2
    await asyncio.sleep(0)
    watching.cancel()


@pytest.mark.anyio
async def test_a_line_knows_how_fast_it_goes_while_something_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line, now = Line(), 0.0
    monkeypatch.setattr(admission, "time", SimpleNamespace(perf_counter=lambda: now))
    assert line.wait_seconds == 0.0
    for _ in range(3):
        with line.stand(2):
            now += 0.02
        now += 0.05  # nothing is there: this says nothing of its rate
    with pytest.raises(asyncio.CancelledError), line.stand(100):
        raise asyncio.CancelledError  # is not done
    with line.stand(10):
        assert line.wait_seconds == pytest.approx(0.1)
    assert line.waiting == 0


async def send(address: str, path: str, seconds: float) -> tuple[int, float, float]:
    """The status, the seconds to it, and those of Retry-After."""
    host, port = address.removeprefix("http://").split(":")
    body = REQUESTS[path]
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"{TIMEOUT_HEADER}: {seconds}\r\nContent-Length: {len(body)}"
    writer.write(f"{head}\r\n\r\n{body}".encode())
    reply = (await reader.readuntil(b"\r\n\r\n")).decode()
    writer.close()
    promised = reply.lower().partition("retry-after-ms: ")[2].partition("\r\n")[0]
    return int(reply.split()[1]), time.perf_counter() - started, float(promised or 0) / 1000


@pytest.mark.alone
@pytest.mark.parametrize("place", ["thread", "loop", "searches"])
def test_more_than_is_done_in_time_is_429_and_not_504(
    built_home: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Four times as much as the server does, where the model is the fastest part of it."""
    # So slow that the clients, which are in this process, are the lesser part of the work.
    each, allowed, peak = 0.04, 2.0, 25
    path = "/search" if place == "searches" else "/v1/embeddings"
    if place == "searches":
        search, threads = Searcher.search_embedded, 4
        monkeypatch.setattr(server_module, "SEARCH_THREADS", threads)

        def slow_search(self: Searcher, *given: Any) -> Any:
            time.sleep(each * threads)
            return search(self, *given)

        monkeypatch.setattr(Searcher, "search_embedded", slow_search)
    elif place == "thread":
        prepare = ServedModel._prepare

        def slow_prepare(self: ServedModel, *given: object) -> object:
            time.sleep(each)
            return prepare(self, *given)  # type: ignore[arg-type]

        monkeypatch.setattr(ServedModel, "_prepare", slow_prepare)
    else:
        find = Server.find

        async def slow_find(self: Server, model: str | None) -> object:
            time.sleep(each)
            return await find(self, model)

        monkeypatch.setattr(Server, "find", slow_find)

    async def load(address: str) -> list[tuple[int, float, float]]:
        await send(address, path, 60)  # what is opened for the first one is opened once
        started, seconds = time.perf_counter(), 2.5
        tasks = list[asyncio.Task[tuple[int, float, float]]]()
        while (now := time.perf_counter() - started) < seconds:
            while len(tasks) < now * 4 * peak:
                tasks.append(asyncio.create_task(send(address, path, allowed)))
            await asyncio.sleep(0.01)
        return await asyncio.gather(*tasks)

    with live(built_home) as (address, _, _):
        replies = asyncio.run(load(address))
    statuses = [status for status, _, _ in replies]
    # All are, where nothing else runs; a machine that stands still for a while is late for some.
    assert statuses.count(200) + statuses.count(429) >= 0.95 * len(statuses)
    assert statuses.count(200) > 0.1 * 2.5 * peak  # of which 0.8 and more where nothing else runs
    promised = [seconds for status, _, seconds in replies if status == 429]
    assert min(promised) > 0.25 * allowed  # refused from half of it on, by what is known then


@pytest.mark.anyio
async def test_all_connections_that_wait_are_taken_in_one_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a new caller waits where nobody counts it."""
    monkeypatch.setattr(Process, "_protocol", lambda _: asyncio.Protocol())
    process = Process(Server(tmp_path, Keys(None)), "127.0.0.1", 0, print)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        listening.setblocking(False)
        callers = [socket.create_connection(listening.getsockname()) for _ in range(50)]
        process._accept(listening)
        taken = await asyncio.gather(*process._accepting)
        assert len(taken) == 50
        for transport, _ in taken:
            transport.abort()
        for caller in callers:
            caller.close()
        await asyncio.sleep(0)


@pytest.mark.anyio
async def test_who_comes_during_a_look_goes_on_with_all_others(
    built_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a lock, one of them would go on in each turn of the event loop."""
    server, turns = Server(built_home, Keys(None)), set[int]()
    turn = 0

    async def ask() -> None:
        await server.served()
        turns.add(turn)

    asking = [asyncio.create_task(ask()) for _ in range(50)]
    while not all(task.done() for task in asking):
        turn += 1
        await asyncio.sleep(0)
    assert len(turns) == 1
    await server.close()
