"""The server under load, on loopback, beside the bare engine on the same texts in the same run.

    python -m benchmarks.serving [--data FOLDER] [--seconds 10] [--json FILE]

A real server process over MiniLM; requests come from an asyncio client in this process, which takes
processor time from the server on the same machine. On a machine that is not quiet the clock says
little: compare `cpu`, the processor seconds of the server's process and of the engine for a text.

- engine: the engine on many texts at once, in this process.
- alone: one client that sends a text at a time, beside the bare model call.
- many: 64 clients that each send the next text when the last is answered.
- mixed: the same with 8 clients, while bulk requests of 256 texts go on.
- overload: requests come four times as fast as `many` were answered, each with 10 seconds.
- leave: 1,000 clients that hang up; the tokens that were computed for them.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engine import MODEL, TEXTS, corpora
from embedding_pipelines.inference.encoder import Engine
from embedding_pipelines.inference.weights import model_folder

CLIENTS, MIXED_CLIENTS, BULK_CLIENTS, BULK_TEXTS = 64, 8, 2, 256
OVERLOAD, LEAVE, TIMEOUT_SECONDS = 4, 1_000, 10
PIPELINE = f"""\
source: {{kind: csv, path: none.csv, id: id, text: [text]}}
model: {{provider: hf, model: {MODEL}}}
"""


@dataclass
class Answers:
    """What clients saw: seconds of each answer that was a vector, and the status of every one."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    retry_after: list[float] = field(default_factory=list)

    def milliseconds(self, percent: float) -> float:
        return float(np.percentile(self.seconds, percent)) * 1000 if self.seconds else float("nan")


class Connection:
    """HTTP/1.1 on one connection, no more than this needs: a client library would take more
    processor time than the server."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, body: bytes, headers: str = "") -> asyncio.StreamReader:
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address)
        reader, writer = self._streams
        head = (
            f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{headers}"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await writer.drain()
        return reader

    async def post(self, body: bytes, answers: Answers, headers: str = "") -> None:
        started = time.perf_counter()
        reader = await self.send(body, headers)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        status = int(lines[0].split()[1])
        values = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        await reader.readexactly(int(values["content-length"]))
        answers.statuses[status] += 1
        if status == 200:
            answers.seconds.append(time.perf_counter() - started)
        if "retry-after-ms" in values:
            answers.retry_after.append(float(values["retry-after-ms"]) / 1000)
        if values.get("connection") == "close":
            self.close()

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


class Served:
    """A server process, and what it counts."""

    def __init__(self, address: str, process: int) -> None:
        import psutil

        self.host, port = address.removeprefix("http://").split(":")
        self.port, self._process = int(port), psutil.Process(process)

    def connection(self) -> Connection:
        return Connection(self.host, self.port)

    @property
    def cpu_seconds(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def metric(self, pattern: str) -> float:
        """The sum of the samples whose line begins so."""
        import httpx2

        text = httpx2.get(f"http://{self.host}:{self.port}/metrics", timeout=60).text
        return sum(float(value) for value in re.findall(rf"^{pattern}.* (\S+)$", text, re.M))


@contextlib.contextmanager
def serve(home: Path) -> Iterator[Served]:
    (home / "pipelines").mkdir()
    (home / "pipelines" / "bench.yaml").write_text(PIPELINE, encoding="utf-8")
    program = "from embedding_pipelines.cli.main import main; main()"
    environment = {**os.environ, "EMBEDDING_PIPELINES_HOME": str(home)}
    environment.pop("EMBEDDING_API_KEY", None)
    words = [sys.executable, "-c", program, "serve", "--port", "0"]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield Served(line.split()[2], process.pid)
        finally:
            process.terminate()


def body_of(*texts: str) -> bytes:
    """Queries, which no cache answers."""
    value: Any = texts[0] if len(texts) == 1 else texts
    body = {"input": value, "input_type": "query", "encoding_format": "base64", "truncate": True}
    return json.dumps(body).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    default = Path(__file__).parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each part")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    texts = corpora(options.data, 1.0, TEXTS)
    figures: dict[str, Any] = {"load_average": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder)) as served:
        short, long = texts["captions"], texts["abstracts"]
        figures |= asyncio.run(_measure(served, short, long, options.seconds))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


async def _measure(
    served: Served, short: Sequence[str], long: Sequence[str], seconds: float
) -> dict[str, Any]:
    engine = Engine(model_folder(MODEL, None, Path.cwd()), "auto")
    engine.embed(short[:256], "query")
    figures: dict[str, Any] = {}

    def add(name: str, values: dict[str, Any]) -> None:
        figures[name] = values
        print(name, json.dumps(values), flush=True)

    for name, texts in (("captions", short), ("abstracts", long)):
        add(f"engine {name}", _engine(engine, texts, seconds))
        add(f"alone {name}", await _alone(served, engine, texts, seconds))
        add(f"many {name}", await _many(served, texts, seconds, figures[f"engine {name}"]))
    add("mixed", await _mixed(served, short, long, seconds))
    peak = figures["many abstracts"]["per_second"]
    add("overload", await _overload(served, long, seconds, peak))
    add("leave", await _leave(served, short))
    return figures


def _engine(engine: Engine, texts: Sequence[str], seconds: float) -> dict[str, float]:
    """Texts a second of wall and of processor time, in batches as large as it likes."""
    done, started, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - started < seconds:
        part = texts[done % len(texts) :][:512]
        engine.embed(part, "query")
        done += len(part)
    taken, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"per_second": done / taken, "cpu_ms": cpu / done * 1000}


async def _alone(
    served: Served, engine: Engine, texts: Sequence[str], seconds: float
) -> dict[str, float]:
    """In turns: the bare call, and a request."""
    connection, answers, bare = served.connection(), Answers(), list[float]()
    until = time.perf_counter() + seconds
    for text in texts:
        if time.perf_counter() > until:
            break
        started = time.perf_counter()
        engine.embed([text], "query")
        bare.append(time.perf_counter() - started)
        await connection.post(body_of(text), answers)
    connection.close()
    calls = Answers(bare)
    return {
        "requests": len(bare),
        "p50_ms": answers.milliseconds(50),
        "bare_p50_ms": calls.milliseconds(50),
        "p99_ms": answers.milliseconds(99),
        "bare_p99_ms": calls.milliseconds(99),
    }


async def _clients(
    served: Served, count: int, body: Callable[[int], bytes], until: float, answers: Answers
) -> None:
    """Clients that each send the next text when the last is answered."""
    numbers = iter(range(10**9))

    async def client() -> None:
        connection = served.connection()
        while time.perf_counter() < until:
            await connection.post(body(next(numbers)), answers)
        connection.close()

    await asyncio.gather(*(client() for _ in range(count)))


async def _many(
    served: Served, texts: Sequence[str], seconds: float, engine: dict[str, float]
) -> dict[str, Any]:
    answers, cpu, started = Answers(), served.cpu_seconds, time.perf_counter()
    await _clients(
        served, CLIENTS, lambda at: body_of(texts[at % len(texts)]), started + seconds, answers
    )
    taken, cpu = time.perf_counter() - started, served.cpu_seconds - cpu
    count = len(answers.seconds)
    return {
        "per_second": count / taken,
        "of_engine": count / taken / engine["per_second"],
        "cpu_ms": cpu / count * 1000,
        "of_engine_by_cpu": engine["cpu_ms"] / (cpu / count * 1000),
        "p50_ms": answers.milliseconds(50),
        "p99_ms": answers.milliseconds(99),
        "statuses": answers.statuses,
    }


async def _mixed(
    served: Served, short: Sequence[str], long: Sequence[str], seconds: float
) -> dict[str, Any]:
    small, bulk, started = Answers(), Answers(), time.perf_counter()
    family = r"embedding_pipelines_serving_infer_seconds"
    lane = r'\{model="[^"]*",lane="bulk"\}'
    before = [served.metric(f"{family}_{name}{lane}") for name in ("sum", "count")]

    def part(number: int) -> bytes:
        first = number * BULK_TEXTS % max(1, len(long) - BULK_TEXTS)
        return body_of(*long[first : first + BULK_TEXTS])

    until = started + seconds
    await asyncio.gather(
        _clients(served, MIXED_CLIENTS, lambda at: body_of(short[at % len(short)]), until, small),
        _clients(served, BULK_CLIENTS, part, until, bulk),
    )
    after = [served.metric(f"{family}_{name}{lane}") for name in ("sum", "count")]
    batch = (after[0] - before[0]) / max(1, after[1] - before[1]) * 1000
    return {
        "batch_ms": batch,
        "p50_ms": small.milliseconds(50),
        "p99_ms": small.milliseconds(99),
        "p99_of_batch": small.milliseconds(99) / batch,
        "interactive": len(small.seconds),
        "bulk_texts": len(bulk.seconds) * BULK_TEXTS,
        "statuses": small.statuses + bulk.statuses,
    }


async def _overload(
    served: Served, texts: Sequence[str], seconds: float, peak: float
) -> dict[str, Any]:
    """Requests by the clock, whatever is answered; those that are late are not counted as good."""
    answers, tasks, free = Answers(), set[asyncio.Task[None]](), list[Connection]()
    started, sent, dropped = time.perf_counter(), 0, 0

    async def one(number: int) -> None:
        nonlocal dropped
        connection = free.pop() if free else served.connection()
        try:
            header = f"X-Request-Timeout: {TIMEOUT_SECONDS}\r\n"
            await connection.post(body_of(texts[number % len(texts)]), answers, header)
            free.append(connection)
        except (OSError, asyncio.IncompleteReadError):
            dropped += 1

    while (now := time.perf_counter() - started) < seconds:
        while sent < now * peak * OVERLOAD:
            tasks.add(task := asyncio.create_task(one(sent)))
            task.add_done_callback(tasks.discard)
            sent += 1
        await asyncio.sleep(0.005)
    good = sum(taken <= TIMEOUT_SECONDS for taken in answers.seconds)
    await asyncio.gather(*tasks)
    for connection in free:
        connection.close()
    return {
        "sent_per_second": sent / seconds,
        "good_per_second": good / seconds,
        "of_peak": good / seconds / peak,
        "statuses": answers.statuses,
        "connections_lost": dropped,
        "retry_after_s": [min(answers.retry_after), max(answers.retry_after)]
        if answers.retry_after
        else [],
        "p99_ms": answers.milliseconds(99),
    }


async def _leave(served: Served, texts: Sequence[str]) -> dict[str, Any]:
    """Behind a bulk request, so that all of them wait when they leave."""
    tokens = r"embedding_pipelines_serving_tokens_total\{model=\"[^\"]*\",lane=\"interactive\"\}"
    before = served.metric(tokens)
    bulk, answers = served.connection(), Answers()
    waiting = asyncio.create_task(bulk.post(body_of(*texts[:2_000]), answers))
    await asyncio.sleep(0.2)
    for number in range(LEAVE):
        connection = served.connection()
        await connection.send(body_of(f"{texts[number]} {number}"))
        connection.close()
    await waiting
    bulk.close()
    return {
        "left": LEAVE,
        "abandoned": served.metric(r"embedding_pipelines_serving_abandoned_total"),
        "tokens": served.metric(tokens) - before,
    }


if __name__ == "__main__":
    main()
