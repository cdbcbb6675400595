"""Does random things to a pipeline, one after the other, and compares what is to be seen of it after
each with what must be true.

    python -m embedding_pipelines_tests.faults.sequences 10000 [--seed 0] [--acts 4]

The source is edited (records and files come, change, go, are renamed and doubled), the pipeline file
changed, and there are runs and pushes of documents (some of which are killed or meet a fault of the
disk), plans, rollbacks, forced releases, texts embedded anew, documents forgotten, and deletions.
What was pushed is searched at once, whatever happens. In every fifth tree two machines share a
warehouse in a bucket, and now one, now the other acts; every fifth has no files, and lives on pushes.

Sequences grow on trees: after the same beginning several acts are tried, each in a copy of the
homes, so that a beginning is played once. A run without a fault ends each. A sequence that fails is
tried again with steps left out; what is left of its steps is printed (`--play` repeats it), and the
exit status is 1. A tree of four acts has 256 sequences: processes share the work by seeds, and each
counts in its last line.

    for k in $(seq 0 13); do python -m embedding_pipelines_tests.faults.sequences 768 --seed $((3 * k)) & done
"""

import argparse
import contextlib
import copy
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from embedding_pipelines.delete import delete_pipeline
from embedding_pipelines.errors import ReleaseError
from embedding_pipelines.forget.forget import forget
from embedding_pipelines.plan import plan
from embedding_pipelines.progress import Silent
from embedding_pipelines.push import Pusher
from embedding_pipelines.releases import read_releases, rollback
from embedding_pipelines.remote import refresh, writing
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.search import Searcher
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.steps.chain import step_named
from embedding_pipelines.steps.embeddings import RETRY, re_embed
from embedding_pipelines.steps.release import release
from embedding_pipelines.storage import lease
from embedding_pipelines.storage.pushed import pushed_log
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import run_of, write_csv, write_pipeline
from embedding_pipelines_tests.faults.children import (
    KINDS,
    Fault,
    in_child,
    prepare_children,
    start_again_with_shim,
)
from embedding_pipelines_tests.faults.damage import run
from embedding_pipelines_tests.faults.sweep import answers, unnamed

FILES_SOURCE = """\
{{kind: csv, path: 'data/*.csv', id: id, text: [title], metadata: [{metadata}], max_rejected: 50, \
duplicates: {duplicates}}}"""
PUSH_SOURCE = "{{kind: push, id: id, text: [title], metadata: [{metadata}]}}"
PIPELINE = """\
source: {source}
preprocessing: {{chunk: {{max_tokens: {max_tokens}, overlap: 2}}}}
model: {{provider: hashing, dimensions: {dimensions}}}
partitions: 2
compression: {compression}
store: {{kind: lancedb, keep_releases: {keep_releases}}}
evaluation: {{known_items: 4}}
"""
OPTIONS = {
    "metadata": ["cat", "cat, tag", ""],
    "max_tokens": [8, 32],
    "dimensions": [8, 16],
    "compression": ["[]", "[float16]", "[int8]", "[binary]"],
    "keep_releases": [2, 3],
    "duplicates": ["first", "last", "reject"],
}
CHANGES = {"edit": 8, "option": 3, "shrink": 1}  # of what the user writes, and how often
ACTS = {
    "run": 7,
    "faulty-run": 7,
    "plan": 1,
    "rollback": 3,
    "force": 2,
    "retry": 1,
    "re-embed": 1,
    "delete": 1,
    "forget": 2,
    "push": 3,
    "faulty-push": 3,
}
PUSHES = ("push", "faulty-push")
BRANCHES = 4  # acts that are tried after one beginning
SHARED = PUSHED = 5  # one tree in so many has two machines, or no files
CALLS = {"faulty-run": 450, "faulty-push": 40}  # about: where a fault may strike
COLUMNS = ("id", "title", "cat", "tag")
ALL = 500  # hits: more than there are documents
FILES = ("a.csv", "b.csv", "c.csv")
Rows = dict[str, tuple[str, ...]]  # the cells of records, by a key of ours
Pushed = dict[str, tuple[str, ...] | None]  # in place of records, by id; None: deleted


class Step(NamedTuple):
    """What is done, with dice of its own, so that leaving out another step leaves it as it is."""

    name: str
    seed: int

    def __str__(self) -> str:
        return f"{self.name}:{self.seed}"


class Seen(NamedTuple):
    """What is to be seen: the live release, the answers of searches, the rows of each release, the
    vectors of the live one, all documents that a search shows, and what was pushed."""

    live: int | None
    answers: list[Any] | None
    rows: dict[int, set[tuple[str, ...]]]
    vectors: dict[str, list[float]]
    unnamed: list[str]
    shown: set[str] | None
    pushed: "Pushed"


@dataclass
class World:
    """The homes of one or two machines, and what must be true of them."""

    folder: Path
    is_shared: bool
    has_files: bool
    rows: Rows
    files: dict[str, str]  # where a record stands; the first file if it is not here
    options: dict[str, Any]
    seen: Seen = field(default_factory=lambda: Seen(None, None, {}, {}, [], None, {}))
    # The pipeline file was changed since: before the first release searches go by it.
    is_outdated: bool = False
    forgotten: set[str] = field(default_factory=set)
    pushed: Pushed = field(default_factory=dict)

    @classmethod
    def new(cls, folder: Path, is_shared: bool, has_files: bool) -> "World":
        shutil.rmtree(folder, ignore_errors=True)
        rows: Rows = {}
        for n in range(20):
            rows[f"id-{n}"] = (f"id-{n}", f"word{n % 7} text number {n}", f"c{n % 3}", "t")
        options = {name: values[0] for name, values in OPTIONS.items()}
        world = cls(folder, is_shared, has_files, rows if has_files else {}, {}, options)
        world.write()
        if not has_files:
            ended = in_child(partial(push, world.homes[0], {**rows}), world.folder)
            assert not ended.traceback + ended.sentence, ended
            world.pushed = {**rows}
        return world

    @property
    def ids(self) -> list[str]:
        """Of the documents that can be forgotten."""
        rows = [
            row for row in (*self.rows.values(), *self.pushed.values()) if row and len(row) == 4
        ]
        return sorted({row[0] for row in rows} - self.forgotten)

    @property
    def homes(self) -> list[Path]:
        return [self.folder / name for name in ("one", "two")[: 1 + self.is_shared]]

    @property
    def reader(self) -> Path:
        """Where all that counts is to be seen."""
        return self.folder / "reader" if self.is_shared else self.homes[0]

    def write(self) -> None:
        for home in {*self.homes, self.reader}:
            self.write_home(home, set())
            if self.is_shared:
                uri = (self.folder / "bucket").as_uri()
                (home / "warehouse.yaml").write_text(f"bucket: {uri}\n")

    def write_home(self, home: Path, gone: set[str], is_clean: bool = False) -> None:
        """Pipeline and source, without the documents of some ids. `is_clean`: what was pushed is in
        the source."""
        pushed = [row for row in self.pushed.values() if row and row[0] not in gone]
        gone = gone | self.pushed.keys() if is_clean else gone
        for name in FILES:
            rows = [
                row
                for key, row in self.rows.items()
                if self.files.get(key, FILES[0]) == name and row[0] not in gone
            ]
            if is_clean and name == FILES[0]:
                rows += pushed
            if rows or name == FILES[0]:
                write_csv(home, name, rows, "id,title,cat,tag")
            else:
                (home / "data" / name).unlink(missing_ok=True)
        source = FILES_SOURCE if self.has_files or is_clean else PUSH_SOURCE
        text = PIPELINE.replace("{source}", source)
        write_pipeline(home, "p", text.format(**self.options))


def see(home: Path) -> Seen:
    """Reads all releases, whole."""
    refresh(Warehouse(home), "p")
    folder = Warehouse(home).pipeline("p")
    releases, rows = read_releases(folder), dict[int, set[tuple[str, ...]]]()
    vectors = dict[str, list[float]]()
    for entry in releases.releases:
        table = entry.spec.store.table(folder.tables, entry.table)
        names = [
            name
            for name in ("chunk_id", "text", "cat", "tag")
            if name in table.schema(entry.version).names
        ]
        listed = [
            tuple(map(str, row.values()))
            for batch in table.scan(names, version=entry.version)
            for row in batch.to_pylist()
        ]
        rows[entry.number] = set(listed)
        assert len(listed) == len(rows[entry.number]) == entry.rows, f"doubles in {entry.number}"
        if entry.number == releases.live:
            vectors = {
                row["chunk_id"]: [float(number) for number in row[VECTOR]]
                for batch in table.scan(["chunk_id", VECTOR], version=entry.version)
                for row in batch.to_pylist()
            }
    log = pushed_log(Warehouse(home), "p")
    log.fetch()
    pushed: Pushed = {
        change.id: tuple(change.record[name] for name in COLUMNS) if change.record else None
        for change in log.last_changes(log.last())
    }
    found: list[Any] | None = None
    shown: set[str] | None = None
    with contextlib.suppress(ReleaseError), Searcher(Warehouse(home), "p") as searcher:
        found = answers(searcher)
        shown = {hit.document_id for hit in searcher.search("word", ALL).hits}
    return Seen(releases.live, found, rows, vectors, unnamed(home), shown, pushed)


def push(home: Path, new: Pushed) -> None:
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in new.values() if row]
    gone = [name for name, row in new.items() if not row]
    with Pusher(find_pipeline("p", home), Warehouse(home)) as pusher:
        if rows:
            pusher.put(rows)
        if gone:
            pusher.delete(gone)


def to_push(world: World, dice: random.Random) -> Pushed:
    """One document, put or deleted; none if it was forgotten."""
    one, kind = f"id-{dice.randrange(40)}", dice.choice(["put", "put", "delete"])
    text = f"pushed word{dice.randrange(9)} number {dice.randrange(99)}."
    row = (one, text, f"c{dice.randrange(3)}", "t")
    return {} if one in world.forgotten else {one: row if kind == "put" else None}


@contextlib.contextmanager
def working(home: Path) -> Iterator[None]:
    """A run's frame. Nobody else is at work: a lease that was not given back has ended."""
    lease.LEASE_SECONDS = 0
    warehouse = Warehouse(home)
    with warehouse.pipeline("p").lock("run", 0), writing(warehouse, "p", Silent()):
        yield


def work_of(
    name: str, home: Path, world: World, dice: random.Random, new: Pushed
) -> Callable[[], Any]:
    """What a step does in a child; `new` is pushed."""

    def on_run(verb: Callable[[Any], Any]) -> Any:
        with working(home), run_of(home, "p") as pipeline:
            return verb(pipeline)

    def whole_run() -> None:
        with working(home):
            run(home)

    def go_back() -> None:
        with working(home):
            folder = Warehouse(home).pipeline("p")
            numbers = [entry.number for entry in read_releases(folder).releases]
            rollback(folder, dice.choice(numbers) if numbers else None)

    def retry(pipeline: Run) -> None:
        with pipeline.folder.lock():
            step = step_named("embeddings")
            list(step.work(pipeline, pipeline.spec.partition_names, {RETRY: True}))

    def forget_one() -> str:
        lease.LEASE_SECONDS = 0
        one = dice.choice(world.ids)
        with run_of(home, "p") as pipeline:
            receipt = forget(pipeline, [one], [])
        assert not receipt.left, receipt.left
        return one

    def delete() -> None:
        lease.LEASE_SECONDS = 0
        delete_pipeline(home, "p", keep_file=True)

    def plan_only() -> None:
        with run_of(home, "p") as pipeline:
            plan(pipeline)

    return {
        "run": whole_run,
        "faulty-run": whole_run,
        "plan": plan_only,
        "rollback": go_back,
        "force": partial(on_run, lambda pipeline: release(pipeline, "because")),
        "retry": partial(on_run, retry),
        "re-embed": partial(on_run, re_embed),
        "delete": delete,
        "forget": forget_one,
        **dict.fromkeys(PUSHES, partial(push, home, new)),
    }[name]


def edit(world: World, dice: random.Random) -> None:
    """A few records are added, changed, renamed, doubled, moved and removed, and one may be bad; a
    file may be renamed."""
    rows, files = world.rows, world.files
    for _ in range(dice.randrange(1, 4)):
        name = f"id-{dice.randrange(30)}"
        kinds = ["add", "change", "change", "remove", "bad", "empty", "twin", "rename", "double"]
        kind = dice.choice([*kinds, "move", "rename file"])
        if kind == "remove" and len(rows) > 14:
            rows.pop(name, None)
        elif kind == "bad":
            rows[f"bad-{dice.randrange(3)}"] = ("id-x",)  # cells lack
        elif kind == "twin" and rows:
            rows[name] = (name, *dice.choice([row for row in rows.values() if len(row) == 4])[1:])
        elif kind == "rename" and name in rows:
            other = f"id-{dice.randrange(30, 60)}"
            rows[other] = (other, *rows.pop(name)[1:])
            files[other] = files.get(name, FILES[0])
        elif kind == "double" and name in rows:  # the same id once more, elsewhere
            rows[f"double-{name}"] = (name, f"another {dice.randrange(9)}", "c0", "t0")
            files[f"double-{name}"] = dice.choice(FILES)
        elif kind == "move":
            files[name] = dice.choice(FILES)
        elif kind == "rename file":
            old, new = dice.sample(FILES, 2)
            for key in rows:
                if files.get(key, FILES[0]) == old:
                    files[key] = new
        else:
            words = " ".join(f"word{dice.randrange(9)}" for _ in range(dice.randrange(2, 20)))
            text = "" if kind == "empty" else f"{words}. About {dice.randrange(99)}."
            rows[name] = (name, text, f"c{dice.randrange(3)}", f"t{dice.randrange(3)}")


def look(world: World, fault: Fault | None) -> list[str]:
    """See what the pipeline holds and answers now; what goes wrong in that, in words."""
    looked = in_child(partial(see, world.reader), world.folder)
    if looked.traceback or looked.sentence:
        return [f"({fault}) cannot be looked at: {looked.traceback or looked.sentence}"]
    world.seen = looked.value
    return []


class Sequences:
    """Plays sequences in a folder; clean builds are kept, for they come again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "homes"
        self.clean: dict[str, Seen] = {}
        self.counts = Counter[str]()

    def grow(self, seed: int, acts: int) -> Iterator[tuple[list[Step], list[str]]]:
        """The sequences of one tree, each with what went wrong."""
        dice = random.Random(seed)
        world, first = World.new(self.home, *kind_of(seed)), Step("run", 0)
        problems = self.take(world, first)
        if problems:
            yield [first], problems
        else:
            yield from self._branch(world, [first], acts, dice)

    def _branch(
        self, world: World, path: list[Step], acts: int, dice: random.Random
    ) -> Iterator[tuple[list[Step], list[str]]]:
        for _ in range(dice.choice([0, 1, 1, 2]) if acts else 0):
            name = dice.choices(list(CHANGES), list(CHANGES.values()))[0]
            name = name if world.has_files else dice.choice(["option", *PUSHES])
            path = [*path, Step(name, dice.randrange(10**6))]
            if problems := self.take(world, path[-1]):
                yield path, problems
                return
        names = dice.choices(list(ACTS), list(ACTS.values()), k=BRANCHES) if acts else ["run"]
        kept = self.home.with_name(f"kept-{acts}")
        if acts:
            shutil.rmtree(kept, ignore_errors=True)  # of a tree that was not played to its end
            shutil.copytree(self.home, kept)
        for number, name in enumerate(names):
            step, own = Step(name, dice.randrange(10**6)), copy.deepcopy(world)
            if number:  # the first goes on where the beginning was played
                shutil.rmtree(self.home)
                shutil.copytree(kept, self.home)
            problems = self.take(own, step)
            if problems or not acts:
                yield [*path, step], problems
            else:
                yield from self._branch(own, [*path, step], acts - 1, dice)
        shutil.rmtree(kept, ignore_errors=True)

    def play(self, steps: list[Step], is_shared: bool, has_files: bool) -> list[str]:
        """What goes wrong first, in words; nothing if all is as it must be."""
        world = World.new(self.home, is_shared, has_files)
        for number, step in enumerate(steps):
            problems = self.take(world, step)
            if problems:
                return [f"step {number + 1}, {step}: {problem}" for problem in problems]
        return []

    def take(self, world: World, step: Step) -> list[str]:
        self.counts[step.name] += 1
        dice, before = random.Random(step.seed), world.seen
        if step.name in CHANGES:
            if step.name == "edit":
                edit(world, dice)
            elif step.name == "shrink":
                for name in list(world.rows)[4:]:
                    del world.rows[name]
            else:
                name = dice.choice(list(OPTIONS))
                world.options[name] = dice.choice(OPTIONS[name])
                world.is_outdated = True
            world.write()
            if before.live is None:  # what has no release answers as its file says now
                return look(world, None)
            return []
        fault, home = None, dice.choice(world.homes)
        if step.name in CALLS:
            fault = Fault(dice.choice(KINDS), dice.randrange(1, CALLS[step.name]))
        warehouse = home / "data" / "warehouse"
        if step.name == "plan":  # which fetches what is newer
            in_child(partial(refresh, Warehouse(home), "p"), world.folder)
        files = _stamps(warehouse)
        new = to_push(world, dice) if step.name in PUSHES else {}
        ended = in_child(work_of(step.name, home, world, dice, new), warehouse, fault)
        if ended.traceback:
            return [f"traceback ({fault}): {ended.traceback}{ended.output}"]
        if step.name == "forget" and ended.value:
            world.forgotten.add(ended.value)
            world.pushed.pop(ended.value, None)
        if step.name == "plan" and files != _stamps(warehouse):
            return ["a plan changed the warehouse"]
        if problems := look(world, fault):
            return problems
        seen = world.seen
        # Of a push that failed nobody can say whether it was in time.
        if not (ended.is_killed or ended.sentence) or seen.pushed == world.pushed | new:
            world.pushed |= new
        problems = list(self.compare(world, step, before, seen, ended.sentence, fault))
        world.is_outdated = False
        return problems

    def compare(
        self, world: World, step: Step, before: Seen, now: Seen, sentence: str, fault: Fault | None
    ) -> Iterator[str]:
        for number in now.rows.keys() & before.rows.keys():
            if now.rows[number] != before.rows[number] and step.name != "delete":
                yield f"silently wrong: release {number} has other rows than it had"
        # What may answer otherwise at once.
        may_change = step.name in ("delete", "forget", *PUSHES)
        may_change |= now.live is None and world.is_outdated
        if now.live == before.live and now.answers != before.answers and not may_change:
            yield f"silently wrong: release {now.live} answers otherwise: {now.answers}"
        if now.pushed != world.pushed:
            odd = dict(now.pushed.items() ^ world.pushed.items())
            yield f"silently wrong ({fault}): what was pushed is lost or came back: {odd}"
        for name, row in world.pushed.items() if now.shown is not None else ():
            if (name in now.shown) != (row is not None):
                yield f"silently wrong ({fault}): a search does not know what was pushed: {name}"
        if world.forgotten & (now.shown or set()):
            yield "silently wrong: a search shows what was forgotten"
        gone = {f"{name}#" for name in world.forgotten}
        for number, rows in now.rows.items():
            if any(row[0].startswith(tuple(gone)) for row in rows):
                yield f"silently wrong: release {number} holds what was forgotten"
        if step.name == "delete":
            if now.live is not None or now.rows:
                yield "releases are left of a deleted pipeline"
            return
        if now.live is None and before.live is not None:
            yield f"the live release is lost: {sentence}"
        new = now.rows.keys() - before.rows.keys()
        keep = world.options["keep_releases"]
        should = sorted(before.rows.keys() | new)[-keep:] if new else sorted(before.rows)
        if step.name in ("run", "faulty-run", "force") and not set(should) <= now.rows.keys():
            yield f"releases lost: {sorted(now.rows)} of {sorted(before.rows)} ({sentence})"
        if step.name in ("run", "faulty-run") and new:
            clean = self.clean_build(world)
            if clean is not None and now.rows[max(new)] != clean.rows[1]:
                odd = sorted(now.rows[max(new)] ^ clean.rows[1])[:3]
                yield f"silently wrong ({fault}): unlike a clean build: {odd}"
            # What int8 makes of a number, and so the finer copies beside bits, depends on the
            # vectors that it was once fitted to.
            is_fitted = world.options["compression"] in ("[int8]", "[binary]")
            is_comparable = not is_fitted and now.live in new
            if clean is not None and is_comparable and now.answers != clean.answers:
                yield f"silently wrong ({fault}): answers unlike a clean build's {now.answers}"
            if clean is not None and is_comparable and not _near(now.vectors, clean.vectors):
                yield f"silently wrong ({fault}): vectors unlike a clean build's"
        if step.name == "run" and not sentence:
            clean = self.clean_build(world)
            if clean is not None and now.rows and now.rows[max(now.rows)] != clean.rows[1]:
                yield "silently wrong: the newest release is not what the source says"
            if now.unnamed:
                yield f"nothing names {', '.join(now.unnamed)}"
        if step.name == "push" and sentence:
            yield f"the push says: {sentence}"
        if step.name == "run" and sentence and "may_shrink" not in sentence:
            yield f"the run says: {sentence}"

    def clean_build(self, world: World) -> Seen | None:
        """What a run from nothing gives; None if it is held back."""
        state = world.rows, world.files, world.options, sorted(world.forgotten), world.pushed
        key = repr(state)
        if key not in self.clean:
            home = self.folder / "clean"
            shutil.rmtree(home, ignore_errors=True)
            world.write_home(home, world.forgotten, is_clean=True)
            ended = in_child(lambda: (run(home), see(home))[1], home)
            assert not ended.traceback, ended.traceback
            if ended.sentence:
                return None
            self.clean[key] = ended.value
        return self.clean[key]

    def shrink(self, steps: list[Step], kind: tuple[bool, bool]) -> list[Step]:
        """As few of the steps as still go wrong, one left out at a time."""
        for at in range(len(steps) - 1, -1, -1):
            fewer = steps[:at] + steps[at + 1 :]
            if self.play(fewer, *kind):
                steps = fewer
        return steps


def _near(left: dict[str, list[float]], right: dict[str, list[float]]) -> bool:
    return left.keys() == right.keys() and all(
        abs(one - other) < 1e-3
        for name in left
        for one, other in zip(left[name], right[name], strict=True)
    )


def _stamps(folder: Path) -> dict[Path, int]:
    paths = [path for path in folder.rglob("*") if path.is_file() and "pipelines" in path.parts]
    return {path: path.stat().st_mtime_ns for path in paths if path.suffix != ".lock"}


def kind_of(seed: int) -> tuple[bool, bool]:
    """Whether a tree has two machines, and whether it has files; some have the one and not the
    other."""
    return seed % SHARED == 2, seed % PUSHED != 4 and seed % (2 * PUSHED) != 7


def play(count: int, seed: int, acts: int, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """What is to be said of each sequence, nothing of one that is right."""
    prepare_children()

    player, played = Sequences(folder), 0
    while played < count:
        for path, problems in player.grow(seed, acts):
            if problems:
                kind = kind_of(seed)
                fewer = player.shrink(path, kind)
                words = " ".join(map(str, fewer))
                again = f"--play '{words}'{' --shared' * kind[0]}{' --pushed' * (not kind[1])}"
                problems = [*problems, *player.play(fewer, *kind), again]
            yield f"tree {seed}", problems
            played += 1
            if problems or played == count:
                break  # what is left of a tree would begin in another state
        seed += 1
    print(f"trees up to {seed - 1}; steps: {dict(player.counts)}")


def one(words: str, kind: tuple[bool, bool], folder: Path) -> list[str]:
    """A sequence as it was printed."""
    prepare_children()

    steps = []
    for word in words.split():
        name, _, seed = word.rpartition(":")
        steps.append(Step(name, int(seed)))
    return Sequences(folder).play(steps, *kind)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0, help="of the first tree")
    parser.add_argument("--acts", type=int, default=4, help="between the first and the last run")
    parser.add_argument("--play", help="one sequence alone, as it was printed")
    parser.add_argument("--shared", action="store_true", help="that one on two machines")
    parser.add_argument("--pushed", action="store_true", help="that one without files")
    options = parser.parse_args()
    start_again_with_shim()
    tried = wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        if options.play:
            results = iter(
                [("it", one(options.play, (options.shared, not options.pushed), Path(folder)))]
            )
        else:
            results = play(options.count, options.seed, options.acts, Path(folder))
        for name, problems in results:
            tried, wrong = tried + 1, wrong + bool(problems)
            for problem in problems:
                print(f"{name}, {problem}", flush=True)
            if not tried % 100:
                print(f"{tried} sequences, {wrong} of them went wrong", flush=True)
    print(f"{tried} sequences, {wrong} of them went wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
