"""The processes beside the clients: servers, and the bare engine."""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.engine import MODEL
from benchmarks.serving.client import EMBED, Connection
from embedding_pipelines.inference.encoder import Engine
from embedding_pipelines.inference.weights import model_folder

PIPELINE = f"""\
source: {{{{kind: csv, path: rows.csv, id: id, text: [text], metadata: {{{{edition: int}}}}}}}}
model: {{{{provider: hf, model: {MODEL}, device: {{device}}}}}}
"""


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
        "import json, sys\nfrom benchmarks.serving.processes import bare\n"
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
            reply: Any = engine_rate(engine, texts[name], number)
        else:
            started = time.perf_counter()
            engine.embed([texts[name][number]], "query")
            reply = time.perf_counter() - started
        print(json.dumps(reply), flush=True)


def engine_rate(engine: Engine, texts: Sequence[str], seconds: float) -> dict[str, float]:
    """Texts a second of wall and of processor time, in batches as large as it likes."""
    count, started, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - started < seconds:
        part = texts[count % len(texts) :][:512]
        engine.embed(part, "query")
        count += len(part)
    taken, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"per_second": count / taken, "cpu_ms": cpu / count * 1000}


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
        f"from benchmarks.serving.processes import use_cpus; use_cpus({cpus!r})\n"
        "from embedding_pipelines.cli.main import main; main()"
    )
    words = [sys.executable, "-c", program, "serve", "--port", "0"]
    with subprocess.Popen(
        words, env=environment(home), stdout=subprocess.PIPE, text=True
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


def environment(home: Path) -> dict[str, str]:
    environment = {**os.environ, "EMBEDDING_PIPELINES_HOME": str(home)}
    environment.pop("EMBEDDING_API_KEY", None)
    return environment
