"""Has a small pipeline meet a fault at points chosen evenly over all its calls to the system.

    python -m embedding_pipelines_tests.faults.sweep 2000 [--command 200] [--seed 0]

For each point: the scenario's command with the fault, a search, the command again without it, and a
comparison with what the same commands come to without any fault. `--command` are points in the
real command, Dagster and its databases included; the others drive the steps alone, which is ten
times as fast. What must not be: a search that answers with anything but the old or the new
release, a traceback, a lost release, a row that differs in the end, a file that nothing names. Each
is printed with the point that repeats it (`--point`), and the exit status is 1.
"""

import argparse
import contextlib
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from embedding_pipelines.delete import delete_pipeline
from embedding_pipelines.errors import ReleaseError
from embedding_pipelines.files import read_json
from embedding_pipelines.forget.forget import forget
from embedding_pipelines.plan import plan
from embedding_pipelines.releases import is_readable, read_releases, rollback
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.search import Searcher
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.status import pipeline_status
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import live_rows, run_of, write_csv, write_pipeline
from embedding_pipelines_tests.decoded import files_with
from embedding_pipelines_tests.faults.children import (
    COUNT,
    KINDS,
    Ended,
    Fault,
    in_child,
    prepare_children,
    start_again_with_shim,
)
from embedding_pipelines_tests.faults.damage import run

PIPELINE = """\
source: {kind: csv, path: 'data/*.csv', id: id, text: [title], metadata: [cat], max_rejected: 5}
model: {provider: hashing, dimensions: 16}
partitions: 2
compression: [float16]
store: {kind: lancedb, keep_releases: 2}
evaluation: {known_items: 4, may_shrink: 1}
"""
QUERIES = ("word3 text number 3", "number 17", "a new text")
ROWS = [(f"id-{n}", f"word{n % 7} text number {n}", f"c{n % 3}") for n in range(24)]
EDITS = [
    ROWS,
    [("id-0", "a new text", "c"), *ROWS[2:], ("id-99", "an added text", "d")],
    [("id-0", "a newer text", "c"), *ROWS[3:], ("id-77", "one more text", "d")],
]


FORGOTTEN = "id-0"
FORGOTTEN_TEXTS = ("a new text", "word0 text number 0")
ALL_IS_DONE = ("no release before 1", "is live already", "There is nothing to delete")


class Point(NamedTuple):
    """Where a fault strikes: `by` is "steps" or "command"."""

    by: str
    scenario: str
    kind: str
    at: int


@dataclass(frozen=True)
class Scenario:
    """What is changed after `releases` runs, each with its edit of the source, and then done; `again`
    is done when the fault is over."""

    releases: int
    edit: Callable[[Path], object]
    verb: str = "run"
    again: Sequence[str] = ("run",)


SCENARIOS: Mapping[str, Scenario] = {
    "first run": Scenario(0, lambda home: write_csv(home, "a.csv", EDITS[0])),
    "change": Scenario(2, lambda home: write_csv(home, "a.csv", EDITS[2])),
    "another codec": Scenario(
        2, lambda home: write_pipeline(home, "p", PIPELINE.replace("float16", "int8"))
    ),
    "rollback": Scenario(2, lambda home: None, "rollback", ("rollback", "run")),
    "search": Scenario(2, lambda home: None, "search"),
    "plan": Scenario(1, lambda home: write_csv(home, "a.csv", EDITS[1]), "plan"),
    "status": Scenario(1, lambda home: None, "status", ("status", "run")),
    "delete": Scenario(2, lambda home: None, "delete", ("delete",)),
    "forget": Scenario(2, lambda home: None, "forget", ("forget", "run")),
    "run again": Scenario(2, lambda home: None),
    "bad rows": Scenario(1, lambda home: write_csv(home, "a.csv", [*EDITS[1], ("x", "y")])),
}


def do(by: str, verb: str, home: Path) -> list[Any] | None:
    """What the command of this name does, in a child; the answers of a search. What the command
    prints is looked at by the caller."""
    if by == "steps":
        spec, warehouse = find_pipeline("p", home), Warehouse(home)
        if verb == "run":
            run(home)
        elif verb == "rollback":
            rollback(warehouse.pipeline("p"), 1)
        elif verb == "search":
            return search(home)
        elif verb == "plan":
            with Run(spec, warehouse) as pipeline:
                plan(pipeline)
        elif verb == "status":
            pipeline_status(spec, warehouse)
        elif verb == "forget":
            with run_of(home, "p") as pipeline:
                forget(pipeline, [FORGOTTEN], [])
        elif verb == "delete":
            delete_pipeline(home, "p", keep_file=True)
        return None
    from embedding_pipelines.cli.main import main

    more = {
        "rollback": ["--to", "1"],
        "search": [QUERIES[0]],
        "delete": ["--yes", "--keep-file"],
        "forget": ["--yes", "--id", FORGOTTEN],
    }.get(verb, [])
    sys.argv = ["embedding-pipelines", "--home", str(home), verb, "p", *more]
    with contextlib.suppress(SystemExit):
        main()
    return None


class Look(NamedTuple):
    """What is to be seen of a home."""

    live: int | None
    answers: list[Any] | None  # None without a release
    rows: dict[str, Any]
    releases: list[int]
    unnamed: list[str]
    lost: list[int]  # releases that cannot be read


def look(home: Path) -> Look:
    folder = Warehouse(home).pipeline("p")
    releases = read_releases(folder)
    lost = [entry.number for entry in releases.releases if not is_readable(folder, entry)]
    rows = {} if releases.live is None else live_rows(home, "p")
    for row in rows.values():
        row[VECTOR] = [round(number, 2) for number in row[VECTOR]]
    numbers = [entry.number for entry in releases.releases]
    return Look(releases.live, search(home), rows, numbers, unnamed(home), lost)


def search(home: Path) -> list[Any] | None:
    try:
        with Searcher(Warehouse(home), "p") as searcher:
            return answers(searcher)
    except ReleaseError:
        return None


def answers(searcher: Searcher) -> list[Any]:
    hits = [searcher.search(query, 8).hits for query in QUERIES]
    ranked = [[(-round(hit.score, 3), hit.chunk_id, hit.text) for hit in each] for each in hits]
    # Which of those that are as near as the last one are shown is chance.
    return [sorted(entry for entry in each if entry[0] < each[-1][0]) for each in ranked]


def unnamed(home: Path) -> list[str]:
    """The files and folders of a warehouse that nothing names, or whose name tells that they are
    half of something."""
    warehouse = Warehouse(home)
    folder, root = warehouse.pipeline("p"), warehouse.root
    odd = re.compile(r"\.tmp|\.reading-|\.damaged|\.torn|^\.[^/]*-[^/]*$")
    paths = [path for path in root.rglob("*") if odd.search(path.name) and path.name != ".lock"]
    for shards in (folder.documents, folder.chunks, folder.embeddings):
        named = {manifest.shard for manifest in shards.manifests(("b00", "b01"))}
        paths += [path for path in shards.folder.glob("b*.parquet*") if path.name not in named]
    releases, state = read_releases(folder).releases, read_json(folder.table_state) or {}
    tables = {entry.table for entry in releases} | {state.get("table")}
    tables |= set(state.get("trained_before", ()))
    for path in warehouse.tables.glob("*"):
        if path.name.removesuffix(".lance").removesuffix(".checksums.json") not in tables:
            paths.append(path)
    codecs = {Path(entry.codec).stem for entry in releases}
    in_force = str(read_json(folder.codecs_in_force))
    for path in folder.codecs.glob("*-*.*"):
        if (
            path.name.partition(".")[0] not in codecs
            and path.name.partition(".")[0] not in in_force
        ):
            paths.append(path)
    for table in warehouse.tables.glob("*.lance"):
        manifests = b"".join(path.read_bytes() for path in table.glob("_versions/*.manifest"))
        for path in (*table.glob("data/*"), *table.glob("_transactions/*")):
            if path.name.encode() not in manifests:
                paths.append(path)
        versions = re.compile(r"\d{20}\.manifest|latest_version_hint\.json")
        paths += [path for path in table.glob("_versions/*") if not versions.fullmatch(path.name)]
    return sorted({path.relative_to(root).as_posix() for path in paths})


class Sweep:
    """The homes that scenarios start from, and what they come to."""

    def __init__(self, folder: Path, by: str) -> None:
        self.folder, self.by = folder, by
        self.homes: dict[str, Path] = {}
        self.before: dict[str, Look] = {}
        self.after: dict[str, Look] = {}
        self.calls: dict[tuple[str, str], int] = {}

    def prepare(self, names: Sequence[str] = tuple(SCENARIOS)) -> None:
        """Build a home for each scenario, run it undisturbed, and count its calls."""
        built = {0: self.folder / f"{self.by}-0"}
        write_pipeline(built[0], "p", PIPELINE)
        for number in range(1, 1 + max(SCENARIOS[name].releases for name in names)):
            built[number] = self._copy(built[number - 1], f"{self.by}-{number}")
            write_csv(built[number], "a.csv", EDITS[number - 1])
            self._must(partial(do, self.by, "run", built[number]))
        for name in names:
            scenario = SCENARIOS[name]
            home = self.homes[name] = self._copy(built[scenario.releases], f"{self.by}-{name}")
            self.before[name] = self._must(partial(look, home)).value
            scenario.edit(home)
            copy = self._copy(home, "counted")
            ended = self._must(partial(do, self.by, scenario.verb, copy), copy, COUNT)
            self.calls |= {(name, kind): calls for kind, calls in ended.calls.items()}
            if "run" in scenario.again:
                self._must(partial(do, self.by, "run", copy))
            self.after[name] = self._must(partial(look, copy)).value

    def points(self) -> list[Point]:
        return [
            Point(self.by, name, kind, at)
            for (name, kind), calls in self.calls.items()
            for at in range(1, calls + 1)
        ]

    def try_point(self, point: Point) -> list[str]:
        """What went wrong, in words; and at the end what the faulty command said."""
        scenario, problems = SCENARIOS[point.scenario], list[str]()
        before, after = self.before[point.scenario], self.after[point.scenario]
        home = self._copy(self.homes[point.scenario], "home")
        step = partial(do, self.by, scenario.verb, home)
        struck = in_child(step, home / "data" / "warehouse", Fault(point.kind, point.at))
        problems += [f"with the fault: {words}" for words in _tracebacks(struck)]
        if struck.value not in (None, before.answers):
            problems.append(f"silently wrong: with the fault a search gives {struck.value}")
        ended = in_child(partial(search, home), home)
        problems += [f"the search after it: {words}" for words in _tracebacks(ended)]
        if ended.sentence:
            problems.append(f"the search after it says: {ended.sentence}")
        elif ended.value not in (before.answers, after.answers):
            problems.append(f"silently wrong: the search after it gives {ended.value}")
        for verb in scenario.again:
            ended = in_child(partial(do, self.by, verb, home), home)
            problems += [f"{verb} again: {words}" for words in _tracebacks(ended)]
            if ended.sentence and not any(words in ended.sentence for words in ALL_IS_DONE):
                problems.append(f"{verb} again says: {ended.sentence}")
        if scenario.verb == "forget":
            ended = in_child(
                partial(files_with, home / "data" / "warehouse", *FORGOTTEN_TEXTS), home
            )
            problems += [f"the text is left in {ended.value or ended.traceback}"] * (
                ended.value != []
            )
        ended = in_child(partial(look, home), home)
        problems += [f"the last look: {words}" for words in _tracebacks(ended)]
        if ended.sentence:
            problems.append(f"the last look says: {ended.sentence}")
        if isinstance(ended.value, Look):
            problems += _differences(ended.value, after)
        return problems

    def _copy(self, source: Path, name: str) -> Path:
        target = self.folder / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        return target

    def _must(
        self, work: Callable[[], Any], home: Path | None = None, fault: Fault | None = None
    ) -> Ended:
        folder = home / "data" / "warehouse" if home else self.folder
        ended = in_child(work, folder, fault)
        assert not ended.sentence, ended.sentence
        assert not list(_tracebacks(ended)), ended
        return ended


def _tracebacks(ended: Ended) -> Iterator[str]:
    if ended.traceback:
        yield f"traceback: {ended.traceback}\n{ended.output}"
    elif "Traceback (most recent" in ended.output or "This should not happen" in ended.output:
        yield f"traceback: {ended.output}"


def _differences(seen: Look, expected: Look) -> Iterator[str]:
    if seen.lost:
        yield f"releases {seen.lost} cannot be read"
    if not set(expected.releases) <= set(seen.releases):
        yield f"releases lost: {seen.releases} are left of {expected.releases}"
    if seen.answers != expected.answers:
        yield f"silently wrong: in the end a search gives {seen.answers}"
    if seen.rows != expected.rows:
        keys = seen.rows.keys() | expected.rows.keys()
        other = [key for key in keys if seen.rows.get(key) != expected.rows.get(key)]
        yield f"silently wrong: rows {other[:3]} differ in the end"
    if seen.unnamed:
        yield f"nothing names {', '.join(seen.unnamed)}"


def chosen(points: Sequence[Point], count: int, seed: int) -> list[Point]:
    """Evenly."""
    if count >= len(points):
        return list(points)
    gap = len(points) / count if count else 0
    return [points[int((number + (seed * 0.618) % 1) * gap)] for number in range(count)]


def sweep(
    steps: int,
    command: int,
    seed: int,
    folder: Path,
    scenarios: Sequence[str] = tuple(SCENARIOS),
    kinds: Sequence[str] = KINDS,
) -> Iterator[tuple[Point, list[str]]]:
    """Each point that was tried, with what went wrong."""
    prepare_children()

    for by, count in (("steps", steps), ("command", command)):
        if not count:
            continue
        if by == "command":
            from embedding_pipelines.cli import main  # noqa: F401
            from embedding_pipelines.orchestration import launch  # noqa: F401
        tool = Sweep(folder, by)
        tool.prepare(scenarios)
        points = [point for point in tool.points() if point.kind in kinds]
        for point in chosen(points, count, seed):
            yield point, tool.try_point(point)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("steps", type=int, help="points in the steps")
    parser.add_argument("--command", type=int, default=0, help="points in the real command")
    parser.add_argument("--seed", type=int, default=0, help="which points, of those beside them")
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="these alone")
    parser.add_argument("--kind", action="append", choices=KINDS, help="these alone")
    parser.add_argument("--point", help="one alone, as it is printed: by/scenario/kind/number")
    options = parser.parse_args()
    start_again_with_shim()
    kinds, tried, wrong = Counter[str](), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        if options.point:
            results = one(options.point, Path(folder))
        else:
            results = sweep(
                options.steps,
                options.command,
                options.seed,
                Path(folder),
                options.scenario or list(SCENARIOS),
                options.kind or KINDS,
            )
        for point, problems in results:
            tried, wrong = tried + 1, wrong + bool(problems)
            kinds[f"{point.by} {point.kind}"] += 1
            for problem in problems:
                print("/".join(map(str, point)), problem, flush=True)
            if not tried % 100:
                print(f"{tried} points, {wrong} of them went wrong", flush=True)
    print(f"{tried} points, {wrong} of them went wrong: {dict(kinds)}")
    sys.exit(bool(wrong))


def one(text: str, folder: Path) -> Iterator[tuple[Point, list[str]]]:
    by, scenario, kind, at = text.split("/")
    prepare_children()

    tool, point = Sweep(folder, by), Point(by, scenario, kind, int(at))
    tool.prepare([scenario])
    yield point, tool.try_point(point)


if __name__ == "__main__":
    main()
