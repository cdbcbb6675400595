"""Has one request of a pipeline to its object store go wrong, at points chosen evenly over all of them.

    python -m embedding_pipelines_tests.faults.store_sweep 1000 [--seed 0]

Source and warehouse are in a bucket of a real S3 server (`buckets.py` says which), behind a proxy
that kills the process before or after a request has done its work, answers 503 once or from then
on, or breaks, cuts or withholds the answer. After each: a reader on another machine, the same
command without a fault, and a comparison with what it comes to without any fault, here and on a
machine that has nothing. What must not be: a reader that answers with anything but the old or the
new release, a traceback, a row that differs in the end, a text that the model was sent twice. Each
is printed with the point that repeats it (`--point`), and the exit status is 1. Processes share the
work by seeds, which choose points beside one another; each counts in its last line.

    for k in $(seq 0 13); do python -m embedding_pipelines_tests.faults.store_sweep 72 --seed $k & done
"""

import argparse
import contextlib
import copy
import http.client
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote
from xml.etree import ElementTree as ET

from embedding_pipelines import objects
from embedding_pipelines.delete import delete_pipeline
from embedding_pipelines.errors import ReleaseError
from embedding_pipelines.forget.forget import forget
from embedding_pipelines.progress import Silent
from embedding_pipelines.remote import refresh, writing
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.steps.pending import pending
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.buckets import (
    CREDENTIALS,
    Exchange,
    TestBucket,
    proxy_to,
    request,
    serve_s3,
)
from embedding_pipelines_tests.chain import live_rows, run_of, run_steps, write_pipeline
from embedding_pipelines_tests.faults.children import (
    Ended,
    in_child,
    prepare_children,
    start_again_with_shim,
)
from embedding_pipelines_tests.faults.sweep import chosen, search, unnamed
from embedding_pipelines_tests.recording import Recording
from embedding_pipelines_tests.shared import PIPELINE

KINDS = ("kill", "kill-after", "503", "503s", "reset", "reset-after", "cut", "silence")
REQUEST_SECONDS = 2  # in place of 90, where an answer is withheld
RETRIES = 3  # in place of 8
ROWS = {f"id-{n}": f"text number {n}" for n in range(12)}
EDITS = [
    {"a": ROWS},
    {"a": {**ROWS, "id-0": "a new text"}, "b": {"id-99": "an added text"}},
    {"a": {"id-0": "a newer text", **dict(list(ROWS.items())[2:])}, "c": {"id-77": "one more"}},
]
FORGOTTEN = "id-0"


@dataclass(frozen=True)
class Scenario:
    """What is done after so many runs, each with its edit of the source."""

    releases: int
    verb: str = "run"
    edits: bool = True  # the source once more


SCENARIOS: Mapping[str, Scenario] = {
    "first run": Scenario(0),
    "change": Scenario(2),
    "other machine": Scenario(1, "run elsewhere"),
    "forget": Scenario(2, "forget", False),
    "delete": Scenario(1, "delete", False),
    "read": Scenario(1, "read", False),
    "sensor": Scenario(1, "sensor"),
}


class Point(NamedTuple):
    """Which request is struck, from 1, and how."""

    scenario: str
    kind: str
    at: int


class Look(NamedTuple):
    """What is to be seen of the pipeline here, and on a machine that has nothing of it."""

    rows: dict[str, Any]
    answers: list[Any] | None
    elsewhere: list[Any] | None
    unnamed: list[str]


def serve_faults(server: str, plan: Any, pipe: Connection) -> None:
    """A proxy in a process of its own. `plan`: kind, from 1, 0 for none; request; how many there
    were; the process to kill."""

    def fault(exchange: Exchange) -> bool:
        with plan.get_lock():
            plan[2] += 1
            kind, at, number, process = plan
        name = KINDS[kind - 1] if kind else ""
        if not name or number < at or (number > at and name != "503s"):
            return False
        if name in ("503", "503s"):
            return exchange.answer(503, b"<Error><Code>SlowDown</Code></Error>")
        if name in ("kill-after", "reset-after", "cut", "silence"):
            status, body = pass_on(server, exchange)
            if name == "cut" and len(body) > 1:
                return exchange.answer(status, body[: len(body) // 2], len(body))
        if name in ("kill", "kill-after"):
            os.kill(process, signal.SIGKILL)
        if name == "silence":
            time.sleep(REQUEST_SECONDS * 1.5)
        return exchange.reset()

    with proxy_to(server, fault) as proxy:
        pipe.send(proxy.address)
        pipe.recv()


def pass_on(server: str, exchange: Exchange) -> tuple[int, bytes]:
    """Have the server do what is asked, and keep its answer."""
    connection, handler = (
        http.client.HTTPConnection(server.removeprefix("http://")),
        exchange.handler,
    )
    with contextlib.closing(connection):
        connection.request(handler.command, handler.path, exchange.body, dict(handler.headers))
        response = connection.getresponse()
        return response.status, response.read()


class Store:
    """A bucket, and the proxy before it."""

    def __init__(self, server: str, address: str, plan: Any) -> None:
        self._server, self._address, self._plan = server, address, plan
        self.bucket = TestBucket(server, "none")
        self._content: dict[str, tuple[str, bytes]] = {}

    def new(self) -> None:
        name = f"bucket{time.time_ns()}"
        request(self._server, "PUT", f"/{name}")
        self.bucket = TestBucket(self._server, name)

    def keep(self) -> None:
        """Note what is in the bucket, for `restore`."""
        self._content = {}
        for key, tag in self._list().items():
            path = f"/{self.bucket.name}/{key}"
            self._content[key] = tag, request(self._server, "GET", path)

    def restore(self) -> None:
        now = self._list()
        for key in now.keys() - self._content.keys():
            self.bucket.delete(key)
        for key, (tag, content) in self._content.items():
            if now.get(key) != tag:
                self.bucket.put(key, content)

    def write_source(self, edit: Mapping[str, Mapping[str, str]]) -> None:
        wanted = {f"in/{name}.csv": rows for name, rows in edit.items()}
        gone = [key for key in self._list() if key.startswith("in/") and key not in wanted]
        self.bucket.delete(*gone)
        for key, rows in wanted.items():
            lines = [f"{name},{title},c" for name, title in rows.items()]
            self.bucket.put(key, "\n".join(["id,title,cat", *lines, ""]))

    def arm(self, kind: str = "", at: int = 0) -> None:
        """For the next child, which gives its own number by `name_victim`."""
        self._plan[:] = [KINDS.index(kind) + 1 if kind else 0, at, 0, 0]

    def name_victim(self) -> None:
        self._plan[3] = os.getpid()
        os.environ.update({**CREDENTIALS, "AWS_ENDPOINT_URL": self._address})
        if self._plan[0] == KINDS.index("silence") + 1:
            objects.REQUEST_SECONDS = REQUEST_SECONDS
        objects.RETRIES = RETRIES
        objects.LONGEST_WAIT_SECONDS = 0.1

    def requests(self) -> int:
        return int(self._plan[2])

    def _list(self) -> dict[str, str]:
        """The ETags of all objects, by key."""
        listed, token = dict[str, str](), ""
        while True:
            more = f"&continuation-token={quote(token)}" if token else ""
            path = f"/{self.bucket.name}?list-type=2{more}"
            reply = ET.fromstring(plain_get(self._server, path))  # our own server's
            space = re.sub(r"[^}]*$", "", reply.tag)
            for entry in reply.iter(f"{space}Contents"):
                key, tag = entry.findtext(f"{space}Key"), entry.findtext(f"{space}ETag")
                listed[unquote(key or "")] = tag or ""
            token = reply.findtext(f"{space}NextContinuationToken") or ""
            if not token:
                return listed


def plain_get(server: str, path: str) -> bytes:
    """As `request`, of a path with a query."""
    connection = http.client.HTTPConnection(server.removeprefix("http://"))
    with contextlib.closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        content = response.read()
        assert response.status == 200, content
        return content


class Logging(Recording):
    """A model that writes every text which it is sent to a file, a kill or not."""

    log: Path = Path()

    def embed(self, inputs: Sequence[str], input_type: Any) -> Any:
        with self.log.open("ab", buffering=0) as file:
            file.write("".join(f"{text}\n" for text in inputs).encode())
        return super().embed(inputs, input_type)


def do(verb: str, home: Path, other: Path, log: Path) -> Any:
    """What is done; the answers of a reader."""
    if verb in ("run", "run elsewhere"):
        home = home if verb == "run" else other
        with working(home):
            model = Logging(run_of(home, "p").model, log=log)
            run_steps(home, "p", model)
    elif verb == "forget":
        with run_of(home, "p") as run:
            receipt = forget(run, [FORGOTTEN], [])
            assert not receipt.left, receipt.left
    elif verb == "delete":
        delete_pipeline(home, "p", keep_file=True)
    elif verb == "read":
        return read(other)
    elif verb == "sensor":
        with run_of(home, "p") as run:
            return pending(run, run.spec.source.files(home))
    return None


@contextlib.contextmanager
def working(home: Path) -> Iterator[None]:
    """A run's frame."""
    warehouse = Warehouse(home)
    with warehouse.pipeline("p").lock("run", 0), writing(warehouse, "p", Silent()):
        yield


def read(home: Path) -> list[Any] | None:
    """What a search answers, brought up to date; None without a release."""
    try:
        refresh(Warehouse(home), "p", "search")
        return search(home)
    except ReleaseError:
        return None


class StoreSweep:
    """One scenario: its home and bucket, and what it comes to."""

    def __init__(self, name: str, store: Store, folder: Path) -> None:
        self.name, self.scenario, self.store = name, SCENARIOS[name], store
        self.home, self.other, self.log = folder / "home", folder / "other", folder / "log"
        self._built = folder / "built"
        self.before: Look | None = None
        self.after: Look | None = None
        self.requests = 0

    def prepare(self) -> None:
        store, scenario = self.store, self.scenario
        store.new()
        self._machine(self.home)
        for number in range(scenario.releases):
            store.write_source(EDITS[number])
            self._must(partial(do, "run", self.home, self.other, self.log))
        self.before = self._must(partial(self.look, self.home)).value
        if scenario.edits:
            store.write_source(EDITS[scenario.releases])
        shutil.copytree(self.home, self._built)
        store.keep()
        self._start()
        self.undisturbed = self._must(self._verb()).value
        self.requests = store.requests()
        self.after = self._must(partial(self.look, self._last_home())).value
        self.billed = self._billed()

    def try_point(self, point: Point) -> list[str]:
        """What went wrong, in words."""
        before, after, problems = self.before, self.after, list[str]()
        assert before is not None
        assert after is not None
        self._start()
        struck = self._child(self._verb(), point.kind, point.at)
        problems += [f"with the fault: {words}" for words in tracebacks(struck)]
        if struck.value not in (None, self.undisturbed, before.answers):
            problems.append(f"silently wrong: with the fault it gives {struck.value}")
        reader = self.home.with_name("reader")
        shutil.rmtree(reader, ignore_errors=True)
        self._machine(reader)
        ended = self._child(partial(read, reader))
        problems += [f"a reader after it: {words}" for words in tracebacks(ended)]
        if ended.sentence:
            problems.append(f"a reader after it is told: {ended.sentence}")
        elif ended.value not in (before.answers, after.elsewhere):
            problems.append(f"silently wrong: a reader after it gets {ended.value}")
        ended = self._child(partial(self._again, self._last_home()))
        problems += [f"again: {words}" for words in tracebacks(ended)]
        if ended.sentence:
            problems.append(f"again says: {ended.sentence}")
        elif isinstance(ended.value, Look):
            problems += differences(ended.value, after)
        twice = {text: n for text, n in self._billed().items() if n > 1}
        if twice:
            problems.append(f"billed twice: {twice}")
        if "run" in self.scenario.verb and self._billed().keys() != self.billed.keys():
            problems.append(f"billed otherwise: {self._billed().keys() ^ self.billed.keys()}")
        return problems

    def look(self, home: Path) -> Look:
        """In a child. `elsewhere` is a machine that has nothing."""
        fresh = self.home.with_name("fresh")
        shutil.rmtree(fresh, ignore_errors=True)
        self._machine(fresh)
        answers = search_or_none(home)
        rows = live_rows(home, "p") if answers is not None else {}
        for row in rows.values():
            row[VECTOR] = [round(number, 2) for number in row[VECTOR]]
        return Look(rows, answers, read(fresh), unnamed(home) if answers is not None else [])

    def _again(self, home: Path) -> Look:
        if self.scenario.verb != "sensor":
            try:
                do(self.scenario.verb, self.home, self.other, self.log)
            except Exception as error:
                if "There is nothing to delete" not in str(error):
                    raise
        return self.look(home)

    def _verb(self) -> Callable[[], Any]:
        return partial(do, self.scenario.verb, self.home, self.other, self.log)

    def _last_home(self) -> Path:
        elsewhere = self.scenario.verb in ("run elsewhere", "read")
        return self.other if elsewhere else self.home

    def _start(self) -> None:
        for home in (self.home, self.other):
            shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(self._built, self.home)
        self._machine(self.other)
        self.log.unlink(missing_ok=True)
        self.store.restore()

    def _machine(self, home: Path) -> None:
        uri = self.store.bucket.uri
        write_pipeline(home, "p", PIPELINE.replace("'data/*.csv'", f"'{uri}/in/*.csv'"))
        (home / "warehouse.yaml").write_text(f"bucket: {uri}/warehouse\n")

    def _billed(self) -> Counter[str]:
        return Counter(self.log.read_text().splitlines() if self.log.exists() else [])

    def _child(self, work: Callable[[], Any], kind: str = "", at: int = 0) -> Ended:
        self.store.arm(kind, at)

        def named() -> Any:
            self.store.name_victim()
            return work()

        return in_child(named, self.home)

    def _must(self, work: Callable[[], Any]) -> Ended:
        ended = self._child(work)
        assert not ended.sentence, ended.sentence
        assert not list(tracebacks(ended)), ended
        return ended


def search_or_none(home: Path) -> list[Any] | None:
    try:
        return search(home)
    except ReleaseError:
        return None


def tracebacks(ended: Ended) -> Iterator[str]:
    if ended.traceback or "Traceback (most recent" in ended.output:
        yield f"traceback: {ended.traceback}\n{ended.output}"


def differences(seen: Look, expected: Look) -> Iterator[str]:
    if seen.rows != expected.rows:
        keys = seen.rows.keys() | expected.rows.keys()
        other = [key for key in keys if seen.rows.get(key) != expected.rows.get(key)]
        yield f"silently wrong: rows {other[:3]} differ in the end"
    if seen.answers != expected.answers:
        yield f"silently wrong: in the end a search gives {seen.answers}"
    if seen.elsewhere != expected.elsewhere:
        yield f"silently wrong: in the end another machine gets {seen.elsewhere}"
    if seen.unnamed:
        yield f"nothing names {', '.join(seen.unnamed)}"


@contextlib.contextmanager
def open_store(folder: Path) -> Iterator[Store]:
    """A server with a proxy before it, in processes of their own."""
    context = multiprocessing.get_context("spawn")
    with serve_s3(folder / "server.log") as server:
        plan = context.Array("l", 4)
        ours, theirs = context.Pipe()
        process = context.Process(target=serve_faults, args=(server, plan, theirs), daemon=True)
        process.start()
        try:
            yield Store(server, ours.recv(), plan)
        finally:
            process.kill()
            process.join()


def sweep(
    count: int,
    seed: int,
    folder: Path,
    scenarios: Sequence[str] = tuple(SCENARIOS),
    kinds: Sequence[str] = KINDS,
) -> Iterator[tuple[Point, list[str]]]:
    """Each point that was tried, with what went wrong."""
    prepare_children()

    with open_store(folder) as store:
        tools = {name: StoreSweep(name, copy.copy(store), folder / name) for name in scenarios}
        for tool in tools.values():
            tool.prepare()
        requests = {name: tool.requests for name, tool in tools.items()}
        print(f"requests: {requests}", flush=True)
        points = [
            Point(name, kind, at)
            for name, number in requests.items()
            for kind in kinds
            for at in range(1, number + 1)
        ]
        for point in chosen(points, count, seed):
            yield point, tools[point.scenario].try_point(point)


def one(text: str, folder: Path) -> Iterator[tuple[Point, list[str]]]:
    name, kind, at = text.split("/")
    point = Point(name, kind, int(at))
    with open_store(folder) as store:
        tool = StoreSweep(name, store, folder)
        tool.prepare()
        yield point, tool.try_point(point)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0, help="which points, of those beside them")
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="these alone")
    parser.add_argument("--kind", action="append", choices=KINDS, help="these alone")
    parser.add_argument("--point", help="one alone, as it is printed: scenario/kind/number")
    options = parser.parse_args()
    start_again_with_shim()
    kinds, tried, wrong = Counter[str](), 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.point:
            results = one(options.point, folder)
        else:
            scenarios = options.scenario or list(SCENARIOS)
            results = sweep(options.count, options.seed, folder, scenarios, options.kind or KINDS)
        for point, problems in results:
            tried, wrong = tried + 1, wrong + bool(problems)
            kinds[point.kind] += 1
            for problem in problems:
                print("/".join(map(str, point)), problem, flush=True)
            if not tried % 100:
                print(f"{tried} points, {wrong} of them went wrong", flush=True)
    print(f"{tried} points, {wrong} of them went wrong: {dict(kinds)}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
