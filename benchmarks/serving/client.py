"""Clients on loopback, and what they see."""

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

EMBED = "/v1/embeddings"


@dataclass
class Answers:
    """What clients saw: seconds of each answer that was a vector, and the status of every one."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    waits: list[tuple[float, float]] = field(default_factory=list)  # when sent, seconds to 200
    retry_after: list[tuple[float, float]] = field(default_factory=list)  # when sent, as promised

    def milliseconds(self, percent: float) -> float:
        return float(np.percentile(self.seconds, percent)) * 1000 if self.seconds else float("nan")


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """HTTP/1.1 on one connection, no more than this needs: a client library would take more
    processor time than the server."""

    def __init__(self, host: str, port: int, path: str = EMBED) -> None:
        self._address, self._path = (host, port), path
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, body: bytes, headers: str = "") -> asyncio.StreamReader:
        if self._streams is not None and self._streams[0].at_eof():  # idle for too long
            self.close()
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address)
        reader, writer = self._streams
        head = (
            f"POST {self._path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{headers}"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await writer.drain()
        return reader

    async def ask(self, body: bytes, headers: str = "") -> Reply:
        reader = await self.send(body, headers)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        values = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        content = await reader.readexactly(int(values["content-length"]))
        if values.get("connection") == "close":
            self.close()
        return Reply(int(lines[0].split()[1]), values, content)

    async def post(self, body: bytes, answers: Answers, headers: str = "") -> float:
        """Seconds after which to send it again, if it was refused; 0 else."""
        started = time.perf_counter()
        reply = await self.ask(body, headers)
        answers.statuses[reply.status] += 1
        now = time.perf_counter()
        if reply.status == 200:
            answers.seconds.append(now - started)
            answers.waits.append((started, now - started))
        if "retry-after-ms" in reply.headers:
            promised = float(reply.headers["retry-after-ms"]) / 1000
            answers.retry_after.append((started, promised))
            return promised
        return 0.0

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


def body_of(*texts: str) -> bytes:
    """Queries, which no cache answers."""
    value: Any = texts[0] if len(texts) == 1 else texts
    body = {"input": value, "input_type": "query", "encoding_format": "base64", "truncate": True}
    return json.dumps(body).encode()


def infinity_body(text: str) -> bytes:
    return json.dumps({"model": "minilm", "input": text, "encoding_format": "base64"}).encode()


async def clients(
    connection: Callable[[], Connection],
    count: int,
    body: Callable[[int], bytes],
    until: Callable[[], bool],
    answers: Answers,
    pause: float = 0.0,
) -> None:
    """Clients that each send the next text when the last is answered."""
    numbers = itertools.count()

    async def client() -> None:
        own = connection()
        while not until():
            promised = await own.post(body(next(numbers)), answers)
            if pause or promised:
                await asyncio.sleep(min(promised, 1.0) or pause)
        own.close()

    await asyncio.gather(*(client() for _ in range(count)))


def after(seconds: float) -> Callable[[], bool]:
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() >= end
