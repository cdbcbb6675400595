"""Soak: a real `dagster dev`, with sensor and schedule on, over a source that never rests.

    python -m embedding_pipelines_tests.faults.soak 30

A writer changes files every few seconds, a program pushes documents through a real server, and readers
search and read the whole table all the while. Every answer has to agree, document by document, with
what the source held at some moment while the answer's release was made; every change has to be in a
release before the sensor has looked for the third time; what was pushed is in the server's next
answer, and stays there; in the end the table is the source; and no process grows. Prints figures, and
exits with 1 if anything of this fails.
"""

import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import linear_regression, median, quantiles
from typing import Any

import psutil

from embedding_pipelines.orchestration.instance import ensure_instance_folder
from embedding_pipelines.releases import read_releases
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.orchestration.dev import REPOSITORY, Ask, runs, serve
from embedding_pipelines_tests.orchestration.support import environment
from embedding_pipelines_tests.serving.processes import serving

NAME = "notes"
PIPELINE = """\
source: {kind: jsonl, path: data/notes/*.jsonl, id: id, text: [text]}
model: {provider: hashing, dimensions: 64}
schedule: "*/5 * * * *"
partitions: 4
evaluation: {known_items: 8, may_shrink: 1, may_lose: 1, checks: {data_has_not_drifted: off}}
"""
WORDS = ["river", "roof", "barn", "horse", "copy", "archive", "lamp", "oak", "tide", "queue"]
FILES, DOCUMENTS = 8, 25  # of each file, at first
WRITE_SECONDS = (1.0, 5.0)  # between two changes of the source
READ_SECONDS = 0.2  # between two searches
ANSWERS = 10  # of a searcher, before another one is opened
SAMPLE_SECONDS = 5.0
PUSHED = "pushed"  # how the ids of documents begin that come through the server
DOCUMENTS_PATH = f"/api/embedding-pipelines/{NAME}/documents"
MOST_TICKS = 2  # of the sensor, between a change and the release that has it
END_SECONDS = 300.0  # for the last change to be released
WARM = 0.4  # of the samples, which are left out: what a process loads, it loads by then
GROWTH = (0.1, 20.0)  # of the memory of one kind of process, as a share and in MB, while warm

START = """mutation($sensor: SensorSelector!) {startSensor(sensorSelector: $sensor)
{__typename ... on PythonError{message}}}"""
EVENTS = """query($run: ID!) {logsForRun(runId: $run)
{... on EventConnection {events {... on MessageEvent {message level}}}}}"""
TICKS = """query($sensor: SensorSelector!) {sensorOrError(sensorSelector: $sensor)
{... on Sensor{sensorState{ticks(limit: 1000){timestamp status}}}}}"""
SENSOR = {**REPOSITORY, "sensorName": f"{NAME}_source_sensor"}


@dataclass(frozen=True)
class Change:
    """What a document became; text None: it went. It happened between two moments."""

    document: str
    text: str | None
    begun_at: float
    done_at: float


class History:
    """What the source held when: all changes of each document, in order."""

    def __init__(self) -> None:
        self._of: dict[str, list[Change]] = defaultdict(list)
        self._lock = threading.Lock()

    def add(self, changes: Sequence[Change]) -> None:
        with self._lock:
            for change in changes:
                self._of[change.document].append(change)

    def held(self, document: str, text: str | None, start: float, end: float) -> bool:
        """Whether this was the document's text, None for no such document, at some moment between
        two."""
        with self._lock:
            changes = [Change(document, None, 0.0, 0.0), *self._of.get(document, ())]
        for change, following in pairwise([*changes, None]):
            assert change is not None
            is_before_end = change.begun_at <= end
            is_after_start = following is None or following.done_at >= start
            if change.text == text and is_before_end and is_after_start:
                return True
        return False

    def documents(self) -> list[str]:
        with self._lock:
            return list(self._of)

    def of(self, document: str) -> list[Change]:
        with self._lock:
            return list(self._of[document])


@dataclass
class Writer:
    """Changes one file, or two, at a time; each new text is one that never was."""

    folder: Path
    history: History
    chance: random.Random
    files: dict[str, dict[str, str]] = field(default_factory=dict)  # file -> document -> text
    count: int = 0
    kinds: Counter[str] = field(default_factory=Counter)

    def begin(self) -> None:
        self.folder.mkdir(parents=True)
        for number in range(FILES):
            self._write(f"f{number}", {self._id(): self._text() for _ in range(DOCUMENTS)})

    def change(self) -> None:
        name, kind = self.chance.choice(sorted(self.files)), self.chance.choice(KINDS)
        rows = dict(self.files[name])
        if kind == "edit" and rows:
            for document in self.chance.sample(sorted(rows), min(len(rows), 3)):
                rows[document] = self._text()
        elif kind == "delete" and len(rows) > 1:
            del rows[self.chance.choice(sorted(rows))]
        elif kind == "rename":
            self._rename(name, f"f{self._number()}")
        elif kind == "remove" and len(self.files) > FILES // 2:
            self._write(name, {})
        elif kind == "file":
            name, rows = f"f{self._number()}", {self._id(): self._text() for _ in range(5)}
        else:
            kind, rows = "add", {**rows, self._id(): self._text()}
        if kind not in ("rename", "remove"):
            self._write(name, rows)
        self.kinds[kind] += 1

    def state(self) -> dict[str, str]:
        return {document: text for rows in self.files.values() for document, text in rows.items()}

    def _number(self) -> int:
        self.count += 1
        return self.count

    def _id(self) -> str:
        return f"d{self._number()}"

    def _text(self) -> str:
        return f"{' '.join(self.chance.choices(WORDS, k=8))} number{self._number()}"

    def _write(self, name: str, rows: dict[str, str]) -> None:
        """Replace a file in one rename; without rows remove it."""
        path, before = self.folder / f"{name}.jsonl", self.files.get(name, {})
        lines = [json.dumps({"id": each, "text": text}) + "\n" for each, text in rows.items()]
        draft = self.folder.parent / "draft"
        draft.write_text("".join(lines), encoding="utf-8")
        begun = time.time()
        if rows:
            draft.rename(path)
        else:
            path.unlink()
        done = time.time()
        self.files = {**self.files, name: rows}
        if not rows:
            del self.files[name]
        differing = [each for each in {**before, **rows} if before.get(each) != rows.get(each)]
        self.history.add([Change(each, rows.get(each), begun, done) for each in differing])

    def _rename(self, name: str, to: str) -> None:
        """Documents stay what they are; a run that looks meanwhile may miss the file, as it may
        see what a deletion and an addition leave."""
        begun = time.time()
        (self.folder / f"{name}.jsonl").rename(self.folder / f"{to}.jsonl")
        done = time.time()
        rows = self.files[name]
        self.files = {each: kept for each, kept in self.files.items() if each != name} | {to: rows}
        self.history.add([Change(each, None, begun, done) for each in rows])
        self.history.add([Change(each, text, begun, done) for each, text in rows.items()])


KINDS = ("edit", "edit", "edit", "add", "delete", "rename", "file", "remove")


def read(home: Path) -> None:
    """The reader's process: prints an answer a line, until its stdin ends."""
    from embedding_pipelines.explore.table import load_table
    from embedding_pipelines.search import Searcher

    threading.Thread(target=_end_with_stdin, daemon=True).start()
    folder, chance, seen = Warehouse(home).pipeline(NAME), random.Random(1), 0
    while not read_releases(folder).live:
        time.sleep(1)
    while True:
        with Searcher(home, NAME) as searcher:
            for _ in range(ANSWERS):
                result = searcher.search(" ".join(chance.choices(WORDS, k=3)), k=5)
                hits = {hit.document_id: hit.text for hit in result.hits}
                _print(release=result.release, hits=hits)
                time.sleep(READ_SECONDS)
        live = read_releases(folder).live or 0
        if live != seen:
            table = load_table(home, NAME)
            if read_releases(folder).live == live:  # else the table may be of the next one
                seen, rows = live, dict(zip(table["document_id"], table["text"], strict=True))
                _print(release=live, table=rows, rows=len(table), ids=len(rows))


def _print(**answer: Any) -> None:
    print(json.dumps({"at": time.time(), **answer}), flush=True)


def _end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(0)


@dataclass
class Upserts:
    """Puts documents through a server, again with another text, and deletes them; the server's next
    answer has to show each one that is there, and none that is not."""

    address: str
    texts: dict[str, str] = field(default_factory=dict)  # by id, as they were put last
    chance: random.Random = field(default_factory=lambda: random.Random(2))
    kinds: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of a push

    def __call__(self) -> None:
        kind = self.chance.choice(["put", "put", "replace", "delete"]) if self.texts else "put"
        document = f"{PUSHED}{self.kinds.total()}"
        if kind != "put":
            document = self.chance.choice(sorted(self.texts))
        text = f"{' '.join(self.chance.choices(WORDS, k=8))} pushed{self.kinds.total()}"
        self.kinds[kind] += 1
        began = time.monotonic()
        try:
            if kind == "delete":
                self._ask(f"{DOCUMENTS_PATH}/delete", ids=[document])
                del self.texts[document]
            else:
                self._ask(DOCUMENTS_PATH, documents=[{"id": document, "text": text}])
                self.texts[document] = text
            self.seconds.append(time.monotonic() - began)
            self.look(f"after a {kind}")
        except urllib.error.HTTPError as error:
            words = error.read().decode("utf-8", "replace")
            self.problems.append(f"a {kind} is answered with {error.code}: {words}")

    def look(self, when: str) -> None:
        answer = self._ask("/search", pipeline=NAME, query=" ".join(WORDS), k=10_000)
        shown = {hit["document_id"]: hit["text"] for hit in answer["hits"]}
        shown = {name: text for name, text in shown.items() if name.startswith(PUSHED)}
        if shown != self.texts:
            odd = sorted(dict(shown.items() ^ self.texts.items()))
            self.problems.append(f"{when}, the server's answer is wrong of {odd}")

    def _ask(self, path: str, **body: Any) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.address + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)


@dataclass
class Soak:
    """What was seen, and what was wrong with it."""

    history: History
    answers: list[dict[str, Any]] = field(default_factory=list)
    memory: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # kind -> s, MB
    released_at: dict[int, float] = field(default_factory=dict)  # by release
    problems: list[str] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)

    def follow(self, reader: "subprocess.Popen[str]") -> None:
        assert reader.stdout is not None
        for line in reader.stdout:
            answer = json.loads(line)
            for kind in answer.keys() & {"table", "hits"}:
                texts = answer[kind].items()
                answer[kind] = {each: text for each, text in texts if not each.startswith(PUSHED)}
            self.answers.append(answer)

    def sample(self, home: Path) -> None:
        """Resident memory of this process and all below it, by kind; and which releases there
        are."""
        sums: Counter[str] = Counter()
        process = psutil.Process()
        for each in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                sums[_kind(each.cmdline())] += each.memory_info().rss
        for kind, size in sums.items():
            self.memory.setdefault(kind, []).append((time.time(), size / 1e6))
        for release in read_releases(Warehouse(home).pipeline(NAME)).releases:
            self.released_at[release.number] = release.released_at.timestamp()

    def judge(self, ask: Ask, state: dict[str, str]) -> None:
        spans = [
            (run["startTime"], run["endTime"] or time.time())
            for run in runs(ask)
            if run["startTime"]
        ]
        windows = {
            number: (max(start for start, _ in spans if start <= at), at)
            for number, at in self.released_at.items()
        }
        self._judge_answers(windows)
        self._judge_ticks(ask, spans)
        tables = [answer for answer in self.answers if "table" in answer]
        if not tables or tables[-1]["table"] != state:
            self.problems.append("the last table is not the source")
        self._judge_memory()
        ended = Counter(run["status"] for run in runs(ask))
        self.figures.append(
            f"{sum(ended.values())} runs: {dict(ended)}; {len(self.released_at)} releases"
        )
        for run in runs(ask):
            if run["status"] != "SUCCESS":
                began = f"after {run['startTime'] - spans[0][0]:.0f} s" if run["startTime"] else ""
                events = ask(EVENTS, run=run["runId"])["logsForRun"]["events"]
                why = [event["message"] for event in events if event.get("level") == "ERROR"]
                self.problems.append(f"a run {began} ended as {run['status']}: {' '.join(why)}")

    def _judge_answers(self, windows: dict[int, tuple[float, float]]) -> None:
        """Of each answer every document, and of whole tables every document that is not there."""
        newest, unjudged = 0, 0
        for answer in self.answers:
            number = answer["release"]
            if number < newest:
                self.problems.append(f"release {number} answered after {newest}")
            newest = max(newest, number)
            if number not in windows:
                unjudged += 1  # a release that has been removed since
                continue
            start, end = windows[number]
            texts = answer["table"] if "table" in answer else answer["hits"]
            if answer.get("rows", len(texts)) != answer.get("ids", len(texts)):
                self.problems.append(f"release {number} holds a document twice")
            missing = set(self.history.documents()) - texts.keys() if "table" in answer else set()
            for document, text in [*texts.items(), *((each, None) for each in missing)]:
                if not self.history.held(document, text, start, end):
                    self.problems.append(f"release {number}: {document} was never {text!r} then")
        whole = sum("table" in answer for answer in self.answers)
        self.figures.append(
            f"{len(self.answers) - whole:,} searches and {whole} whole tables were compared with the "
            f"source, but for {unjudged} of releases that have left"
        )

    def _judge_ticks(self, ask: Ask, spans: Sequence[tuple[float, float]]) -> None:
        """How long it took until a release had a change, and how often the sensor looked until the
        run began that made it. A look while another run is at work is none: it asks for nothing."""
        state = ask(TICKS, sensor=SENSOR)["sensorOrError"]["sensorState"]
        ticks = sorted(tick["timestamp"] for tick in state["ticks"])
        if failed := sum(tick["status"] == "FAILURE" for tick in state["ticks"]):
            self.problems.append(f"{failed} looks of the sensor failed")
        free = [at for at in ticks if not any(start <= at <= end for start, end in spans)]
        tables = [answer for answer in self.answers if answer.get("table")]
        first = min(self.released_at.values(), default=0.0)  # which nobody had to ask for
        seconds, looks, all_looks = list[float](), Counter[int](), Counter[int]()
        for document in self.history.documents():
            for change, at in _releases_of(self.history.of(document), tables, self.released_at):
                if change.begun_at < first:
                    continue
                if at is None:
                    self.problems.append(f"{document}: {change.text!r} was never released")
                    continue
                begun = max(start for start, _ in spans if start <= at)
                number = sum(change.done_at < tick <= begun for tick in free)
                looks[number] += 1
                all_looks[sum(change.done_at < tick <= at for tick in ticks)] += 1
                seconds.append(at - change.done_at)
                if number > MOST_TICKS:
                    self.problems.append(f"{document}: {change.text!r} after {number} looks")
        if len(seconds) > 1:
            self.figures += [
                f"{len(seconds):,} changes of documents were released after {median(seconds):.0f} s "
                f"(median), {quantiles(seconds, n=20)[18]:.0f} s (95%), {max(seconds):.0f} s (at "
                f"most); a run takes {median(end - start for start, end in spans):.0f} s (median)",
                f"by looks of the sensor until their run began: {dict(sorted(looks.items()))}; by "
                f"all until their release: {dict(sorted(all_looks.items()))}; of {len(ticks)}",
            ]

    def _judge_memory(self) -> None:
        for kind, samples in sorted(self.memory.items()):
            warm = samples[int(len(samples) * WARM) :]
            sizes = [size for _, size in warm]
            if kind == "runs" or len(warm) < 10:  # runs are short: only the most counts
                self.figures.append(
                    f"memory of {kind}: {max(s for _, s in samples):.0f} MB at most"
                )
                continue
            slope, start = linear_regression([at - warm[0][0] for at, _ in warm], sizes)
            growth = slope * (warm[-1][0] - warm[0][0])
            self.figures.append(
                f"memory of {kind}: {start:.0f} MB, {growth:+.1f} MB in "
                f"{(warm[-1][0] - warm[0][0]) / 60:.0f} min ({slope * 3600:+.0f} MB an hour)"
            )
            share, megabytes = GROWTH
            if growth > max(share * start, megabytes):
                self.problems.append(f"the memory of {kind} grows by {growth:.0f} MB")


def _releases_of(
    changes: Sequence[Change], tables: Sequence[dict[str, Any]], released_at: dict[int, float]
) -> Iterator[tuple[Change, float | None]]:
    """Of each change of one document, when the first table was released that has it, or a later
    one."""
    shown = []
    for table in tables:
        at, text = released_at[table["release"]], table["table"].get(changes[0].document)
        numbers = [
            number
            for number, change in enumerate(changes)
            if change.text == text and change.begun_at <= at
        ]
        shown.append((at, max(numbers, default=-1)))
    for number, change in enumerate(changes):
        yield change, next((at for at, newest in shown if newest >= number), None)


def _kind(words: Sequence[str]) -> str:
    """What a process is, by its command line."""
    line = " ".join(words)
    names = {
        "faults.soak --read": "reader",
        "faults.soak": "this harness",
        "multiprocessing": "runs",  # which code servers start so
        "grpc": "code servers",
        "webserver": "webserver",
        "daemon": "daemon",
        " serve ": "server",
        "dagster dev": "dagster dev",
    }
    return next((name for part, name in names.items() if part in line), "others")


def soak(minutes: float, home: Path) -> Soak:
    (home / "pipelines").mkdir(parents=True)
    (home / "pipelines" / f"{NAME}.yaml").write_text(PIPELINE)
    history = History()
    writer = Writer(home / "data" / "notes", history, random.Random(0))
    seen = Soak(history)
    writer.begin()
    folder = str(ensure_instance_folder(home))
    command = [sys.executable, "-m", "embedding_pipelines_tests.faults.soak", "--read", str(home)]
    with (
        serve(home, ("dagster", "dev"), home / "dev.log", {"DAGSTER_HOME": folder}) as (ask, _),
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(home)
        ) as reader,
        contextlib.ExitStack() as server,
    ):
        upserts: Upserts | None = None
        follower = threading.Thread(target=seen.follow, args=[reader])
        follower.start()
        try:
            started = ask(START, sensor=SENSOR)["startSensor"]
            assert started["__typename"] == "Sensor", started
            end, sampled_at, write_at = time.time() + 60 * minutes, 0.0, 0.0
            while time.time() < end:
                if seen.released_at and time.time() >= write_at:
                    upserts = upserts or Upserts(server.enter_context(serving(home)))
                    writer.change()
                    upserts()
                    write_at = time.time() + writer.chance.uniform(*WRITE_SECONDS)
                if time.time() - sampled_at >= SAMPLE_SECONDS:
                    sampled_at = time.time()
                    seen.sample(home)
                time.sleep(0.2)
            _wait_for(seen, writer.state(), reader.pid, home)
            if upserts is not None:
                upserts.look("in the end")
        finally:
            assert reader.stdin is not None
            reader.stdin.close()
            follower.join()
        if reader.wait() != 0:
            seen.problems.append(f"the reader ended with {reader.returncode}")
        seen.figures.append(f"changes of files: {dict(sorted(writer.kinds.items()))}")
        if upserts is not None:
            seen.problems += upserts.problems
            seen.figures.append(
                f"pushes: {dict(sorted(upserts.kinds.items()))}, {median(upserts.seconds):.2f} s "
                f"(median), {max(upserts.seconds):.2f} s (at most)"
            )
        seen.judge(ask, writer.state())
    return seen


def _wait_for(seen: Soak, state: dict[str, str], reader: int, home: Path) -> None:
    """Until the reader has read the source's last state, or long enough."""
    end = time.time() + END_SECONDS
    while time.time() < end and psutil.pid_exists(reader):
        tables = [answer["table"] for answer in seen.answers[-200:] if "table" in answer]
        if tables and tables[-1] == state:
            break
        time.sleep(1)
    seen.sample(home)


def main(words: Sequence[str]) -> int:
    if words[:1] == ["--read"]:
        read(Path(words[1]))
    minutes = float(words[0])
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        seen = soak(minutes, Path(folder))
        print(*seen.figures, sep="\n")
        for problem in seen.problems[:20]:
            print(f"VIOLATION: {problem}")
        print(f"{minutes:g} minutes: {len(seen.problems)} violations")
        if seen.problems:
            print((Path(folder) / "dev.log").read_text("utf-8", "replace")[-3_000:])
    return 1 if seen.problems else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
