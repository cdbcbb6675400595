"""The server under load, on loopback, beside the bare engine on the same texts in the same run.

    python -m benchmarks.serving [--data FOLDER] [--seconds 8] [--only PART ...] [--json FILE]
        [--server-cpus 0-3 --client-cpus 4-7] [--device cpu] [--infinity PYTHON]

Real server processes over MiniLM; requests come from an asyncio client in this process. Without
CPUs of its own it takes processor time from the server: then the clock says little, and `cpu`, the
processor seconds of the server's process and of the engine for a text, are compared. With
`--server-cpus` the engine alone has the same CPUs as the server, in turns with it.

- alone: one client that sends a text at a time, in turns with the bare model call.
- many: 64 clients that each send the next text when the last is answered, beside the engine on 512;
  after as long a time that counts as cold, in which OpenVINO prepares for each size of a batch.
- mixed: 8 such clients, while bulk requests of 256 texts go on.
- bulk: 8 clients that pause between texts, while 100,000 texts are embedded in bulk.
- overload: requests come four times as fast as `many` were answered, each with 10 seconds.
- leave: 1,000 clients that hang up; the tokens that were computed for them.
- switch: 10,000 searches while a new release of the pipeline goes live.
- drain: 10,000 requests to two servers of which one gets SIGTERM.
- infinity: `many` and `alone` beside infinity-emb on the same weights, which PYTHON has installed
  (in an environment of its own).

Each part ends in time, says whether it keeps its bound, and the exit status is 1 if one does not.
"""

import argparse
import asyncio
import contextlib
import csv
import itertools
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
JOB_TEXTS, JOB_REQUEST, THINK_SECONDS = 100_000, 2_048, 0.05
REQUESTS, SWITCH_CLIENTS, EVENT_AT, ROWS = 10_000, 16, 2_000, 256
LONGEST_PART = 75.0  # seconds of bulk, switch and drain, whatever is left to do
# The bounds. A batch looks who is there before it is taken, and callers hang up one at a time: so it
# may hold the text of one, 48 tokens at most, who leaves at that moment. This is two such batches.
LEFT_TOKENS = 100
OF_ENGINE, ABOVE_BARE_MS, OF_BATCH, OF_PEAK, RETRY_FACTOR, BULK_SHARE = (
    0.8,
    10.0,
    3.0,
    0.8,
    2.0,
    0.2,
)
PIPELINE = f"""\
source: {{{{kind: csv, path: rows.csv, id: id, text: [text], metadata: {{{{edition: int}}}}}}}}
model: {{{{provider: hf, model: {MODEL}, device: {{device}}}}}}
"""
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


class Served:
    """A server process, and what it counts."""

    def __init__(self, address: str, process: int) -> None:
        import psutil

        self.host, port = address.removeprefix("http://").split(":")
        self.port, self._process = int(port), psutil.Process(process)

    def connection(self, path: str = EMBED) -> Connection:
        return Connection(self.host, self.port, path)

    def terminate(self) -> None:
        self._process.terminate()

    @property
    def cpu_seconds(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def metric(self, pattern: str) -> float:
        """The sum of the samples whose line begins so."""
        import httpx2

        text = httpx2.get(f"http://{self.host}:{self.port}/metrics", timeout=60).text
        return sum(float(value) for value in re.findall(rf"^{pattern}.* (\S+)$", text, re.M))


class Bare:
    """The engine in a process of its own, on the server's CPUs: it computes while it is asked to."""

    PROGRAM = (
        "import json, sys\nfrom benchmarks.serving import bare\n"
        "bare(*map(json.loads, sys.argv[1:]))"
    )

    def __init__(self, texts: dict[str, list[str]], cpus: str | None, device: str) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
            json.dump(texts, file)
        words = [sys.executable, "-c", self.PROGRAM, *map(json.dumps, (file.name, cpus, device))]
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, *words: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def rate(self, name: str, seconds: float) -> dict[str, float]:
        """Texts a second, and processor milliseconds of one, in calls of 512."""
        return dict(self.ask("rate", name, seconds))

    def call(self, name: str, number: int) -> float:
        """Seconds of a call with one text."""
        return float(self.ask("call", name, number))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def bare(file: str, cpus: str | None, device: str) -> None:
    """The other side of `Bare`."""
    use_cpus(cpus)
    texts = json.loads(Path(file).read_text(encoding="utf-8"))
    Path(file).unlink()
    engine = Engine(model_folder(MODEL, None, Path.cwd()), "auto", device=device)
    engine.embed(texts["captions"][:256], "query")
    for line in sys.stdin:
        kind, name, number = json.loads(line)
        if kind == "rate":
            reply: Any = _engine(engine, texts[name], number)
        else:
            started = time.perf_counter()
            engine.embed([texts[name][number]], "query")
            reply = time.perf_counter() - started
        print(json.dumps(reply), flush=True)


def use_cpus(cpus: str | None) -> None:
    """Keep this process, and what it starts, on CPUs such as "0-3,8"."""
    if not cpus:
        return
    numbers = set[int]()
    for part in cpus.split(","):
        first, _, last = part.partition("-")
        numbers |= set(range(int(first), int(last or first) + 1))
    os.sched_setaffinity(0, numbers)


@contextlib.contextmanager
def serve(home: Path, cpus: str | None = None, device: str = "auto") -> Iterator[Served]:
    (home / "pipelines").mkdir(exist_ok=True)
    text = PIPELINE.format(device=device)
    (home / "pipelines" / "bench.yaml").write_text(text, encoding="utf-8")
    program = (
        f"from benchmarks.serving import use_cpus; use_cpus({cpus!r})\n"
        "from embedding_pipelines.cli.main import main; main()"
    )
    words = [sys.executable, "-c", program, "serve", "--port", "0"]
    with subprocess.Popen(
        words, env=_environment(home), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield Served(line.split()[2], process.pid)
        finally:
            process.terminate()


@contextlib.contextmanager
def serve_infinity(python: str, cpus: str | None) -> Iterator[Served]:
    """infinity-emb on the same weights, on the processor, ready to answer."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = str(model_folder(MODEL, None, Path.cwd()))
    options = ["--model-id", folder, "--served-model-name", "minilm", "--port", str(port)]
    options += ["--engine", "torch", "--device", "cpu", "--no-bettertransformer"]
    numbers = ["taskset", "-c", cpus] if cpus else []
    program = str(Path(python).with_name("infinity_emb"))
    command = [*numbers, program, "v2", "--host", "127.0.0.1", *options]
    environment = {**os.environ, "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            import httpx2

            until = time.monotonic() + 120
            while True:
                with contextlib.suppress(httpx2.TransportError):
                    if httpx2.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                        break
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    sys.exit(f"infinity-emb does not start:\n{log.read().decode()[-2000:]}")
                time.sleep(0.5)
            yield Served(f"http://127.0.0.1:{port}", process.pid)
        finally:
            process.terminate()


def _environment(home: Path) -> dict[str, str]:
    environment = {**os.environ, "EMBEDDING_PIPELINES_HOME": str(home)}
    environment.pop("EMBEDDING_API_KEY", None)
    return environment


def body_of(*texts: str) -> bytes:
    """Queries, which no cache answers."""
    value: Any = texts[0] if len(texts) == 1 else texts
    body = {"input": value, "input_type": "query", "encoding_format": "base64", "truncate": True}
    return json.dumps(body).encode()


def infinity_body(text: str) -> bytes:
    return json.dumps({"model": "minilm", "input": text, "encoding_format": "base64"}).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    default = Path(__file__).parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each part that has no end")
    parser.add_argument("--only", action="append", choices=PARTS, help="this part; may be repeated")
    parser.add_argument("--server-cpus", help="of the server, and of the engine: 0-3")
    parser.add_argument("--client-cpus", help="of all else: 4-7")
    parser.add_argument("--device", default="auto", help="of the server, and of the engine: cpu")
    parser.add_argument("--infinity", metavar="PYTHON", help="an interpreter with infinity-emb")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    use_cpus(options.client_cpus)
    parts = options.only or [name for name in PARTS if name != "infinity" or options.infinity]
    if "infinity" in parts and not options.infinity:
        parser.error("the part infinity needs --infinity PYTHON")
    with tempfile.TemporaryDirectory() as folder:
        run = Bench(options, Path(folder), corpora(options.data, 1.0, TEXTS))
        try:
            for name in parts:
                PARTS[name](run)
        finally:
            run.close()
    if options.json:
        options.json.write_text(json.dumps(run.figures, indent=1), encoding="utf-8")
    bounds = {name: values["keeps"] for name, values in run.figures.items() if "keeps" in values}
    print("kept:", *[name for name, keeps in bounds.items() if keeps])
    print("not kept:", *[name for name, keeps in bounds.items() if not keeps])
    sys.exit(not all(bounds.values()))


class Bench:
    """What the parts of one run share; servers and the engine start when they are first needed."""

    def __init__(
        self, options: argparse.Namespace, folder: Path, texts: dict[str, list[str]]
    ) -> None:
        self.texts, self.folder, self.seconds = texts, folder, float(options.seconds)
        self.cpus: str | None = options.server_cpus
        self.device: str = options.device
        self.is_apart = bool(options.server_cpus and options.client_cpus)
        self.infinity: str | None = options.infinity
        load = os.getloadavg()[0]
        self.figures: dict[str, dict[str, Any]] = {
            "machine": {
                "load_average": load,
                "cpus": self.cpus or os.cpu_count(),
                "device": self.device,
            }
        }
        self._open = contextlib.ExitStack()
        self._served: Served | None = None
        self._bare: Bare | None = None

    @property
    def served(self) -> Served:
        """A server without a release."""
        if self._served is None:
            home = self.folder / "plain"
            home.mkdir()
            self._served = self._open.enter_context(serve(home, self.cpus, self.device))
        return self._served

    @property
    def bare(self) -> Bare:
        if self._bare is None:
            self._bare = Bare(self.texts, self.cpus, self.device)
            self._open.callback(self._bare.close)
        return self._bare

    def add(self, name: str, values: dict[str, Any], keeps: bool | None = None) -> None:
        """Note the figures of a part, and whether it keeps its bound."""
        if keeps is not None:
            values["keeps"] = bool(keeps)
        self.figures[name] = values
        print(name, json.dumps(values), flush=True)

    def close(self) -> None:
        self._open.close()


def alone(run: Bench) -> None:
    for name in ("captions", "abstracts"):
        values = asyncio.run(_alone(run, name))
        run.add(f"alone {name}", values, values["p99_ms"] - values["bare_p99_ms"] <= ABOVE_BARE_MS)


def many(run: Bench) -> None:
    for name in ("captions", "abstracts"):
        engine = run.bare.rate(name, run.seconds)
        run.add(f"engine {name}", engine)
        cold = asyncio.run(_many(run.served, run.texts[name], run.seconds, body_of))
        values = asyncio.run(_many(run.served, run.texts[name], run.seconds, body_of))
        values["cold_cpu_ms"] = cold["cpu_ms"]
        values["of_engine"] = values["per_second"] / engine["per_second"]
        values["of_engine_by_cpu"] = engine["cpu_ms"] / values["cpu_ms"]
        share = values["of_engine" if run.is_apart else "of_engine_by_cpu"]
        run.add(f"many {name}", values, share >= OF_ENGINE)


def mixed(run: Bench) -> None:
    values = asyncio.run(_mixed(run))
    run.add("mixed", values, values["p99_of_batch"] <= OF_BATCH and values["bulk_texts"] > 0)


def bulk(run: Bench) -> None:
    values = asyncio.run(_bulk(run))
    is_fed = values["bulk_share_of_batches"] >= BULK_SHARE
    run.add("bulk", values, values["p99_of_batch"] <= OF_BATCH and is_fed)


def overload(run: Bench) -> None:
    if "many abstracts" not in run.figures:
        many(run)
    values = asyncio.run(_overload(run, run.figures["many abstracts"]["per_second"]))
    is_plain = set(values["statuses"]) <= {200, 429} and not values["connections_lost"]
    low, high = values["retry_after_of_truth"] or (1.0, 1.0)
    is_true = low >= 1 / RETRY_FACTOR and high <= RETRY_FACTOR
    run.add("overload", values, values["of_peak"] >= OF_PEAK and is_plain and is_true)


def leave(run: Bench) -> None:
    values = asyncio.run(_leave(run.served, run.texts["captions"]))
    run.add("leave", values, values["tokens"] <= LEFT_TOKENS)


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
            env=_environment(home),
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


def drain(run: Bench) -> None:
    home = run.folder / "second"
    home.mkdir()
    with serve(home, run.cpus, run.device) as first:
        values = asyncio.run(_drain([first, run.served], run.texts["captions"][:ROWS]))
    run.add("drain", values, not values["failed"] and not values["wrong"] and values["is_whole"])


def infinity(run: Bench) -> None:
    assert run.infinity is not None
    with serve_infinity(run.infinity, run.cpus) as other:
        servers: dict[str, tuple[Served, str, Callable[[str], bytes]]] = {
            "ours": (run.served, EMBED, body_of),
            "theirs": (other, "/embeddings", infinity_body),
        }
        for name in ("captions", "abstracts"):
            texts, values = run.texts[name], dict[str, Any]()
            for who, (served, path, body) in [*servers.items(), *servers.items()]:
                figures = asyncio.run(_many(served, texts, run.seconds / 2, body, path))
                best = values.get(who)
                if best is None or figures["per_second"] > best["per_second"]:
                    values[who] = figures
            is_ahead = (
                values["ours"]["per_second"] > values["theirs"]["per_second"]
                and values["ours"]["p99_ms"] < values["theirs"]["p99_ms"]
            )
            run.add(f"infinity {name}", values, is_ahead)


PARTS: dict[str, Callable[[Bench], None]] = {
    part.__name__: part
    for part in (alone, many, mixed, bulk, overload, leave, switch, drain, infinity)
}


def _engine(engine: Engine, texts: Sequence[str], seconds: float) -> dict[str, float]:
    """Texts a second of wall and of processor time, in batches as large as it likes."""
    done, started, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - started < seconds:
        part = texts[done % len(texts) :][:512]
        engine.embed(part, "query")
        done += len(part)
    taken, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"per_second": done / taken, "cpu_ms": cpu / done * 1000}


async def _alone(run: Bench, name: str) -> dict[str, float]:
    """In turns: the bare call, and a request."""
    connection, answers, calls = run.served.connection(), Answers(), Answers()
    run.bare.call(name, 0)  # which is ready then
    until = time.perf_counter() + run.seconds
    for number, text in enumerate(run.texts[name]):
        if time.perf_counter() > until:
            break
        calls.seconds.append(run.bare.call(name, number))
        await connection.post(body_of(text), answers)
    connection.close()
    return {
        "requests": len(answers.seconds),
        "p50_ms": answers.milliseconds(50),
        "bare_p50_ms": calls.milliseconds(50),
        "p99_ms": answers.milliseconds(99),
        "bare_p99_ms": calls.milliseconds(99),
    }


async def _clients(
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


def _after(seconds: float) -> Callable[[], bool]:
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() >= end


async def _many(
    served: Served,
    texts: Sequence[str],
    seconds: float,
    body: Callable[[str], bytes],
    path: str = EMBED,
) -> dict[str, Any]:
    answers, cpu, started = Answers(), served.cpu_seconds, time.perf_counter()
    await _clients(
        lambda: served.connection(path),
        CLIENTS,
        lambda at: body(texts[at % len(texts)]),
        _after(seconds),
        answers,
    )
    taken, cpu = time.perf_counter() - started, served.cpu_seconds - cpu
    count = len(answers.seconds)
    return {
        "per_second": count / taken,
        "cpu_ms": cpu / max(1, count) * 1000,
        "p50_ms": answers.milliseconds(50),
        "p99_ms": answers.milliseconds(99),
        "statuses": answers.statuses,
    }


class Lane:
    """Batches of a lane, and their seconds, from here on."""

    def __init__(self, served: Served, name: str) -> None:
        self._served, self._name = served, name
        self._before = self._now()

    def _now(self) -> tuple[float, float]:
        family = r"embedding_pipelines_serving_infer_seconds"
        labels = rf'\{{model="[^"]*",lane="{self._name}"\}}'
        return (
            self._served.metric(f"{family}_count{labels}"),
            self._served.metric(f"{family}_sum{labels}"),
        )

    def read(self) -> tuple[float, float]:
        count, seconds = self._now()
        return count - self._before[0], seconds - self._before[1]


async def _mixed(run: Bench) -> dict[str, Any]:
    served, short, long = run.served, run.texts["captions"], run.texts["abstracts"]
    small, large, lane = Answers(), Answers(), Lane(run.served, "bulk")

    def part(number: int) -> bytes:  # documents: queries that fit one batch are not bulk
        first = number * BULK_TEXTS
        texts = [f"{at} {long[at % len(long)]}" for at in range(first, first + BULK_TEXTS)]
        body = {"input": texts, "encoding_format": "base64", "truncate": True}
        return json.dumps(body).encode()

    def single(number: int) -> bytes:
        return body_of(short[number % len(short)])

    until = _after(run.seconds)
    await asyncio.gather(
        _clients(served.connection, MIXED_CLIENTS, single, until, small),
        _clients(served.connection, BULK_CLIENTS, part, until, large),
    )
    count, seconds = lane.read()
    batch = seconds / max(1, count) * 1000
    return {
        "batch_ms": batch,
        "p50_ms": small.milliseconds(50),
        "p99_ms": small.milliseconds(99),
        "p99_of_batch": small.milliseconds(99) / batch if batch else float("inf"),
        "interactive": len(small.seconds),
        "bulk_texts": len(large.seconds) * BULK_TEXTS,
        "statuses": small.statuses + large.statuses,
    }


async def _bulk(run: Bench) -> dict[str, Any]:
    """A job of documents that no cache holds, and people who read between their questions."""
    served, short = run.served, run.texts["captions"]
    small, large, started = Answers(), Answers(), time.perf_counter()
    lanes = {name: Lane(served, name) for name in ("interactive", "bulk")}
    is_over = _after(LONGEST_PART)

    def part(number: int) -> bytes:
        first = number * JOB_REQUEST
        texts = [f"{short[at % len(short)]} {at}" for at in range(first, first + JOB_REQUEST)]
        return json.dumps({"input": texts, "encoding_format": "base64"}).encode()

    job = asyncio.create_task(
        _clients(
            served.connection,
            BULK_CLIENTS,
            part,
            lambda: is_over() or len(large.seconds) * JOB_REQUEST >= JOB_TEXTS,
            large,
        )
    )
    await _clients(
        served.connection,
        MIXED_CLIENTS,
        lambda at: body_of(short[at % len(short)]),
        job.done,
        small,
        THINK_SECONDS,
    )
    await job
    taken = time.perf_counter() - started
    count, seconds = lanes["bulk"].read()
    others, _ = lanes["interactive"].read()
    batch = seconds / max(1, count) * 1000
    return {
        "bulk_texts": len(large.seconds) * JOB_REQUEST,
        "bulk_per_second": len(large.seconds) * JOB_REQUEST / taken,
        "bulk_share_of_batches": count / max(1, count + others),
        "batch_ms": batch,
        "p50_ms": small.milliseconds(50),
        "p99_ms": small.milliseconds(99),
        "p99_of_batch": small.milliseconds(99) / batch if batch else float("inf"),
        "interactive": len(small.seconds),
        "statuses": small.statuses + large.statuses,
    }


async def _overload(run: Bench, peak: float) -> dict[str, Any]:
    """Requests by the clock, whatever is answered; those that are late are not counted as good."""
    served, texts, seconds = run.served, run.texts["abstracts"], run.seconds
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

    # The first TIMEOUT_SECONDS fill the queue; what is counted comes after them.
    fill = TIMEOUT_SECONDS
    good = 0
    while (now := time.perf_counter() - started) < fill + seconds:
        while sent < now * peak * OVERLOAD:
            tasks.add(task := asyncio.create_task(one(sent)))
            task.add_done_callback(tasks.discard)
            sent += 1
        if now < fill:
            good = -len(answers.seconds)
        await asyncio.sleep(0.005)
    good += len(answers.seconds)
    await asyncio.gather(*tasks)
    for connection in free:
        connection.close()
    return {
        "sent_per_second": sent / (fill + seconds),
        "good_per_second": good / seconds,
        "of_peak": good / seconds / peak,
        "statuses": answers.statuses,
        "connections_lost": dropped,
        "retry_after_s": _percentiles([promised for _, promised in answers.retry_after]),
        "retry_after_of_truth": _promises(answers),
        "p99_ms": answers.milliseconds(99),
    }


def _promises(answers: Answers) -> list[float]:
    """A Retry-After is the wait that a request would have: the promised seconds by those of the
    accepted request that was sent at about the same time; the 5th and the 95th percentile."""
    sent = np.array([at for at, _ in answers.waits])
    order = np.argsort(sent)
    if not len(order) or not answers.retry_after:
        return []
    waits = np.array([wait for _, wait in answers.waits])[order]
    at = np.searchsorted(sent[order], [when for when, _ in answers.retry_after])
    truth = waits[np.minimum(at, len(waits) - 1)]
    promised = np.array([each for _, each in answers.retry_after])
    return _percentiles((promised / truth).tolist())


def _percentiles(values: Sequence[float]) -> list[float]:
    return [float(each) for each in np.percentile(values, (5, 95))] if values else []


async def _switch(
    served: Served, rows: Sequence[str], release: "Callable[[int], subprocess.Popen[str]]"
) -> dict[str, Any]:
    """Each hit must be of the release that the reply names, and the document that was asked for."""
    seen, failed, wrong, editions = 0, 0, list[str](), Counter[int]()
    numbers, is_over = itertools.count(), _after(LONGEST_PART)
    running: subprocess.Popen[str] | None = None
    bodies = [json.dumps({"query": text, "k": 1}).encode() for text in rows]
    by_text = {text: number for number, text in reversed([*enumerate(rows)])}

    def is_done() -> bool:
        is_switched = editions[2] >= REQUESTS // 10
        return is_over() or (seen >= REQUESTS and is_switched)

    async def client() -> None:
        nonlocal seen, failed, running
        connection = served.connection("/search")
        while not is_done():
            number = next(numbers) % len(rows)
            if running is None and seen >= EVENT_AT:
                running = release(2)
            try:
                reply = await connection.ask(bodies[number])
            except (OSError, asyncio.IncompleteReadError):
                connection.close()
                failed += 1
                continue
            finally:
                seen += 1
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
        "requests": seen,
        "failed": failed,
        "wrong": len(wrong),
        "examples": wrong[:3],
        "by_edition": editions,
        "is_whole": seen >= REQUESTS and editions[2] > 0,
    }


async def _drain(servers: Sequence[Served], texts: Sequence[str]) -> dict[str, Any]:
    """Clients that share two servers, and leave one whose /ready is 503 or that takes no connection."""
    import base64

    import httpx2

    first = servers[0]
    bodies, ready = [body_of(text) for text in texts], [True, True]
    seen, failed, wrong, moved, by_server = 0, 0, 0, 0, Counter[int]()
    numbers, is_over = itertools.count(), _after(LONGEST_PART)
    ended = False

    def vector(reply: Reply) -> Any:
        return np.frombuffer(
            base64.b64decode(json.loads(reply.body)["data"][0]["embedding"]), np.float32
        )

    connection = servers[1].connection()
    right = [vector(await connection.ask(body)) for body in bodies]
    connection.close()

    def is_done() -> bool:
        return is_over() or seen >= REQUESTS

    async def watch() -> None:
        async with httpx2.AsyncClient() as client:
            while not is_done():
                for number, served in enumerate(servers):
                    try:
                        url = f"http://{served.host}:{served.port}/ready"
                        ready[number] = (await client.get(url)).status_code == 200
                    except httpx2.TransportError:
                        ready[number] = False
                await asyncio.sleep(0.2)

    async def client(own: int) -> None:
        nonlocal seen, failed, wrong, ended, moved
        connections = [served.connection() for served in servers]
        while not is_done():
            which = own if ready[own] else 1
            number = next(numbers) % len(bodies)
            if not ended and seen >= EVENT_AT:
                ended = True
                first.terminate()
            try:
                reply = await connections[which].ask(bodies[number])
            except ConnectionRefusedError:  # nothing was sent: it goes to the other one
                ready[which] = False
                moved += 1
                continue
            except (OSError, asyncio.IncompleteReadError):
                connections[which].close()
                failed += 1
                seen += 1
                continue
            seen += 1
            by_server[which] += 1
            if reply.status != 200:
                failed += 1
            elif float(vector(reply) @ right[number]) < 0.9999:
                wrong += 1
        for each in connections:
            each.close()

    await asyncio.gather(watch(), *(client(number % 2) for number in range(SWITCH_CLIENTS)))
    return {
        "requests": seen,
        "failed": failed,
        "wrong": wrong,
        "refused_and_moved": moved,
        "by_server": by_server,
        "is_whole": seen >= REQUESTS and not ready[0],
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
