"""The parts in which something changes: a release goes live, or one of two servers ends."""

import asyncio
import base64
import csv
import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.serving.bench import Bench
from benchmarks.serving.client import Reply, after, body_of
from benchmarks.serving.processes import PIPELINE, Served, environment, serve

REQUESTS, SWITCH_CLIENTS, EVENT_AT, ROWS = 10_000, 16, 2_000, 256
LONGEST_PART = 75.0  # seconds, whatever is left to do


def switch(run: Bench) -> None:
    home = run.folder / "released"
    (home / "pipelines").mkdir(parents=True)
    text = PIPELINE.format(device=run.device)
    (home / "pipelines" / "bench.yaml").write_text(text, encoding="utf-8")
    rows = run.texts["captions"][:ROWS]

    def release(edition: int) -> "subprocess.Popen[str]":
        """A run of the pipeline, whose documents say which edition they are of."""
        with (home / "rows.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "text", "edition"])
            writer.writerows([number, text, edition] for number, text in enumerate(rows))
        program = "from embedding_pipelines.cli.main import main; main()"
        return subprocess.Popen(
            [sys.executable, "-c", program, "run", "bench"],
            env=environment(home),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    first = release(1)
    output, _ = first.communicate(timeout=120)
    assert first.returncode == 0, output
    with serve(home, run.cpus, run.device) as served:
        values = asyncio.run(_switch(served, rows, release))
    run.add("switch", values, not values["failed"] and not values["wrong"] and values["is_whole"])


async def _switch(
    served: Served, rows: Sequence[str], release: "Callable[[int], subprocess.Popen[str]]"
) -> dict[str, Any]:
    """Each hit must be of the release that the reply names, and the document that was asked for."""
    count, failed, wrong, editions = 0, 0, list[str](), Counter[int]()
    numbers, is_late = itertools.count(), after(LONGEST_PART)
    running: subprocess.Popen[str] | None = None
    bodies = [json.dumps({"query": text, "k": 1}).encode() for text in rows]
    by_text = {text: number for number, text in reversed([*enumerate(rows)])}

    def is_over() -> bool:
        is_switched = editions[2] >= REQUESTS // 10
        return is_late() or (count >= REQUESTS and is_switched)

    async def client() -> None:
        nonlocal count, failed, running
        connection = served.connection("/search")
        while not is_over():
            number = next(numbers) % len(rows)
            if running is None and count >= EVENT_AT:
                running = release(2)
            try:
                reply = await connection.ask(bodies[number])
            except (OSError, asyncio.IncompleteReadError):
                connection.close()
                failed += 1
                continue
            finally:
                count += 1
            if reply.status != 200:
                failed += 1
                continue
            answer = json.loads(reply.body)
            hit = answer["hits"][0]
            edition = int(hit["metadata"]["edition"])
            editions[edition] += 1
            is_same = by_text[rows[number]] == by_text[rows[int(hit["document_id"])]]
            if not is_same or answer["release"] != edition:
                wrong.append(f"{rows[number]!r}: {hit} of release {answer['release']}")
        connection.close()

    await asyncio.gather(*(client() for _ in range(SWITCH_CLIENTS)))
    if running is not None:
        output, _ = await asyncio.to_thread(running.communicate, timeout=60)
        assert running.returncode == 0, output
    return {
        "requests": count,
        "failed": failed,
        "wrong": len(wrong),
        "examples": wrong[:3],
        "by_edition": editions,
        "is_whole": count >= REQUESTS and editions[2] > 0,
    }


def drain(run: Bench) -> None:
    home = run.folder / "second"
    home.mkdir()
    with serve(home, run.cpus, run.device) as first:
        values = asyncio.run(_drain([first, run.served], run.texts["captions"][:ROWS]))
    run.add("drain", values, not values["failed"] and not values["wrong"] and values["is_whole"])


async def _drain(servers: Sequence[Served], texts: Sequence[str]) -> dict[str, Any]:
    bodies = [body_of(text) for text in texts]
    connection = servers[1].connection()
    vectors = [_vector(await connection.ask(body)) for body in bodies]
    connection.close()
    draining = _Drain(servers, bodies, vectors)
    each = [draining.client(number % 2) for number in range(SWITCH_CLIENTS)]
    await asyncio.gather(draining.watch(), *each)
    return draining.figures()


class _Drain:
    """Clients that share two servers, and leave one whose /ready is 503 or that takes no call.
    The first is told to end while they ask."""

    def __init__(
        self, servers: Sequence[Served], bodies: Sequence[bytes], vectors: Sequence[Any]
    ) -> None:
        self._servers, self._bodies, self._vectors = servers, bodies, vectors
        self._is_ready, self._has_ended = [True, True], False
        self._count, self._failed, self._wrong, self._moved = 0, 0, 0, 0
        self._by_server = Counter[int]()
        self._numbers, self._is_over = itertools.count(), after(LONGEST_PART)

    async def watch(self) -> None:
        import httpx2

        async with httpx2.AsyncClient() as client:
            while self._goes_on():
                for number, served in enumerate(self._servers):
                    try:
                        url = f"http://{served.host}:{served.port}/ready"
                        self._is_ready[number] = (await client.get(url)).status_code == 200
                    except httpx2.TransportError:
                        self._is_ready[number] = False
                await asyncio.sleep(0.2)

    async def client(self, own: int) -> None:
        """One that prefers this server."""
        connections = [served.connection() for served in self._servers]
        while self._goes_on():
            which = own if self._is_ready[own] else 1
            number = next(self._numbers) % len(self._bodies)
            if not self._has_ended and self._count >= EVENT_AT:
                self._has_ended = True
                self._servers[0].terminate()
            try:
                reply = await connections[which].ask(self._bodies[number])
            except ConnectionRefusedError:  # nothing was sent: it goes to the other one
                self._is_ready[which] = False
                self._moved += 1
                continue
            except (OSError, asyncio.IncompleteReadError):
                connections[which].close()
                self._failed += 1
                self._count += 1
                continue
            self._count += 1
            self._by_server[which] += 1
            if reply.status != 200:
                self._failed += 1
            elif float(_vector(reply) @ self._vectors[number]) < 0.9999:
                self._wrong += 1
        for each in connections:
            each.close()

    def _goes_on(self) -> bool:
        return self._count < REQUESTS and not self._is_over()

    def figures(self) -> dict[str, Any]:
        return {
            "requests": self._count,
            "failed": self._failed,
            "wrong": self._wrong,
            "refused_and_moved": self._moved,
            "by_server": self._by_server,
            "is_whole": self._count >= REQUESTS and not self._is_ready[0],
        }


def _vector(reply: Reply) -> Any:
    text = json.loads(reply.body)["data"][0]["embedding"]
    return np.frombuffer(base64.b64decode(text), np.float32)
