"""Does random things to a pipeline, one after the other, and compares what is to be seen of it after
each with what must be true.

    python -m embedding_pipelines_tests.faults.sequences 1000 [--seed 0] [--steps 8]

The source is edited, the pipeline file changed, and there are runs (some of which are killed or meet
a fault of the disk), plans, rollbacks, forced releases, texts embedded anew, documents forgotten,
and deletions. A sequence that fails is tried again with steps left out; the seed and what is left
of its steps are printed, and the exit status is 1.
"""

import argparse
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
from embedding_pipelines.forget.forget import forget
from embedding_pipelines.plan import plan
from embedding_pipelines.releases import read_releases, rollback
from embedding_pipelines.run import Run
from embedding_pipelines.steps.chain import step_named
from embedding_pipelines.steps.embeddings import RETRY, re_embed
from embedding_pipelines.steps.release import release
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import run_of, write_csv, write_pipeline
from embedding_pipelines_tests.faults.children import (
    KINDS,
    Fault,
    in_child,
    start_again_with_shim,
)
from embedding_pipelines_tests.faults.damage import run
from embedding_pipelines_tests.faults.sweep import search, unnamed

PIPELINE = """\
source: {{kind: csv, path: 'data/*.csv', id: id, text: [title], metadata: [{metadata}], max_rejected: 50}}
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
}
STEPS = {  # and how often
    "edit": 8,
    "option": 3,
    "run": 8,
    "faulty run": 5,
    "plan": 1,
    "rollback": 3,
    "force": 2,
    "retry": 1,
    "re-embed": 1,
    "delete": 1,
    "forget": 1,
    "shrink": 1,
}
CALLS = 450  # of a run, about: where a fault may strike
Rows = dict[str, tuple[str, ...]]  # the cells of records


class Step(NamedTuple):
    """What is done, with dice of its own, so that leaving out another step leaves it as it is."""

    name: str
    seed: int

    def __str__(self) -> str:
        return f"{self.name}:{self.seed}"


class Seen(NamedTuple):
    """What is to be seen: the live release, the answers of searches, and the rows of each release."""

    live: int | None
    answers: list[Any] | None
    rows: dict[int, set[tuple[str, ...]]]
    unnamed: list[str]


@dataclass
class World:
    """A home, and what must be true of it."""

    home: Path
    rows: Rows
    options: dict[str, Any]
    seen: Seen = field(default_factory=lambda: Seen(None, None, {}, []))
    forgotten: set[str] = field(default_factory=set)

    def write(self, home: Path | None = None) -> None:
        """Into another home without what is forgotten."""
        gone = self.forgotten if home else set[str]()
        rows = [row for name, row in self.rows.items() if name not in gone]
        home = home or self.home
        write_csv(home, "a.csv", rows, "id,title,cat,tag")
        write_pipeline(home, "p", PIPELINE.format(**self.options))


def see(home: Path) -> Seen:
    """Reads all releases, whole."""
    folder = Warehouse(home).pipeline("p")
    releases, rows = read_releases(folder), dict[int, set[tuple[str, ...]]]()
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
    return Seen(releases.live, search(home), rows, unnamed(home))


def work_of(name: str, world: World, dice: random.Random) -> Callable[[], Any]:
    """What a step does in a child."""
    home = world.home

    def on_run(verb: Callable[[Any], Any]) -> Any:
        with run_of(home, "p") as pipeline:
            return verb(pipeline)

    def go_back() -> None:
        numbers = [entry.number for entry in read_releases(Warehouse(home).pipeline("p")).releases]
        rollback(Warehouse(home).pipeline("p"), dice.choice(numbers) if numbers else None)

    def retry(pipeline: Run) -> None:
        with pipeline.folder.lock("run", timeout_seconds=0), pipeline.folder.lock():
            step = step_named("embeddings")
            list(step.work(pipeline, pipeline.spec.partition_names, {RETRY: True}))

    def forget_one() -> str:
        one = dice.choice(sorted(name for name in world.rows if name.startswith("id-")))
        receipt = on_run(lambda pipeline: forget(pipeline, [one], []))
        assert not receipt.left, receipt.left
        return one

    return {
        "run": partial(run, home),
        "faulty run": partial(run, home),
        "plan": partial(on_run, plan),
        "rollback": go_back,
        "force": partial(on_run, lambda pipeline: release(pipeline, "because")),
        "retry": partial(on_run, retry),
        "re-embed": partial(on_run, re_embed),
        "delete": partial(delete_pipeline, home, "p", keep_file=True),
        "forget": forget_one,
    }[name]


def edit(rows: Rows, dice: random.Random) -> None:
    """A few rows are added, changed and removed, and one may be bad."""
    for _ in range(dice.randrange(1, 4)):
        name = f"id-{dice.randrange(30)}"
        kind = dice.choice(["add", "change", "change", "remove", "bad", "empty", "twin"])
        if kind == "remove" and len(rows) > 14:
            rows.pop(name, None)
        elif kind == "bad":
            rows[f"bad-{dice.randrange(3)}"] = ("id-x",)  # cells lack
        elif kind == "twin" and rows:
            rows[name] = (name, *dice.choice([row for row in rows.values() if len(row) == 4])[1:])
        else:
            words = " ".join(f"word{dice.randrange(9)}" for _ in range(dice.randrange(2, 20)))
            text = "" if kind == "empty" else f"{words}. About {dice.randrange(99)}."
            rows[name] = (name, text, f"c{dice.randrange(3)}", f"t{dice.randrange(3)}")


class Sequences:
    """Plays sequences in a folder; clean builds are kept, for they come again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clean: dict[str, Seen] = {}
        self.counts = Counter[str]()

    def play(self, steps: list[Step]) -> list[str]:
        """What goes wrong first, in words; nothing if all is as it must be."""
        home = self.folder / "home"
        shutil.rmtree(home, ignore_errors=True)
        rows: Rows = {}
        for n in range(20):
            rows[f"id-{n}"] = (f"id-{n}", f"word{n % 7} text number {n}", f"c{n % 3}", "t")
        world = World(home, rows, {name: values[0] for name, values in OPTIONS.items()})
        world.write()
        for number, step in enumerate(steps):
            self.counts[step.name] += 1
            problems = self.take(world, step)
            if problems:
                return [f"step {number + 1}, {step}: {problem}" for problem in problems]
        return []

    def take(self, world: World, step: Step) -> list[str]:
        dice, home, before = random.Random(step.seed), world.home, world.seen
        if step.name in ("edit", "option", "shrink"):
            if step.name == "edit":
                edit(world.rows, dice)
            elif step.name == "shrink":
                for name in list(world.rows)[4:]:
                    del world.rows[name]
            else:
                name = dice.choice(list(OPTIONS))
                world.options[name] = dice.choice(OPTIONS[name])
            world.write()
            return []
        fault = None
        if step.name == "faulty run":
            fault = Fault(dice.choice(KINDS), dice.randrange(1, CALLS))
        warehouse = home / "data" / "warehouse"
        files = _stamps(warehouse)
        ended = in_child(work_of(step.name, world, dice), warehouse, fault)
        if ended.traceback:
            return [f"traceback ({fault}): {ended.traceback}{ended.output}"]
        if step.name == "forget" and ended.value:
            world.forgotten.add(ended.value)
        if step.name == "plan" and files != _stamps(warehouse):
            return ["a plan changed the warehouse"]
        looked = in_child(partial(see, home), home)
        if looked.traceback or looked.sentence:
            return [f"({fault}) cannot be looked at: {looked.traceback or looked.sentence}"]
        world.seen = seen = looked.value
        return list(self.compare(world, step, before, seen, ended.sentence, fault))

    def compare(
        self, world: World, step: Step, before: Seen, now: Seen, sentence: str, fault: Fault | None
    ) -> Iterator[str]:
        for number in now.rows.keys() & before.rows.keys():
            if now.rows[number] != before.rows[number] and step.name != "delete":
                yield f"silently wrong: release {number} has other rows than it had"
        if now.live == before.live and now.answers != before.answers and step.name != "delete":
            yield f"silently wrong: release {now.live} answers otherwise: {now.answers}"
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
        if step.name in ("run", "faulty run", "force") and not set(should) <= now.rows.keys():
            yield f"releases lost: {sorted(now.rows)} of {sorted(before.rows)} ({sentence})"
        if step.name in ("run", "faulty run") and new:
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
        if step.name == "run" and not sentence:
            clean = self.clean_build(world)
            if clean is not None and now.rows and now.rows[max(now.rows)] != clean.rows[1]:
                yield "silently wrong: the newest release is not what the source says"
            if now.unnamed:
                yield f"nothing names {', '.join(now.unnamed)}"
        if step.name == "run" and sentence and "may_shrink" not in sentence:
            yield f"the run says: {sentence}"

    def clean_build(self, world: World) -> Seen | None:
        """What a run from nothing gives; None if it is held back."""
        key = repr((world.rows, world.options, sorted(world.forgotten)))
        if key not in self.clean:
            home = self.folder / "clean"
            shutil.rmtree(home, ignore_errors=True)
            world.write(home)
            ended = in_child(lambda: (run(home), see(home))[1], home)
            assert not ended.traceback, ended.traceback
            if ended.sentence:
                return None
            self.clean[key] = ended.value
        return self.clean[key]

    def shrink(self, steps: list[Step]) -> list[Step]:
        """As few of the steps as still go wrong, one left out at a time."""
        for at in range(len(steps) - 1, -1, -1):
            fewer = steps[:at] + steps[at + 1 :]
            if self.play(fewer):
                steps = fewer
        return steps


def _stamps(folder: Path) -> dict[Path, int]:
    paths = [path for path in folder.rglob("*") if path.is_file() and "pipelines" in path.parts]
    return {path: path.stat().st_mtime_ns for path in paths if path.suffix != ".lock"}


def steps_of(seed: int, count: int) -> list[Step]:
    dice = random.Random(seed)
    names = dice.choices(list(STEPS), list(STEPS.values()), k=count)
    return [Step(name, dice.randrange(10**6)) for name in ["run", *names, "run"]]


def play(count: int, seed: int, steps: int, folder: Path) -> Iterator[tuple[int, list[str]]]:
    """Each sequence's seed, with what went wrong and the steps that are left of it."""
    import lancedb  # noqa: F401  # before the children need it

    player = Sequences(folder)
    for number in range(seed, seed + count):
        sequence = steps_of(number, steps)
        problems = player.play(sequence)
        if problems:
            fewer = player.shrink(sequence)
            problems = [*player.play(fewer), f"steps: {' '.join(map(str, fewer))}"]
        yield number, problems
    print(f"steps: {dict(player.counts)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=8, help="between the first and the last run")
    options = parser.parse_args()
    start_again_with_shim()
    tried = wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for number, problems in play(options.count, options.seed, options.steps, Path(folder)):
            tried, wrong = tried + 1, wrong + bool(problems)
            for problem in problems:
                print(f"seed {number}, {problem}", flush=True)
            if not tried % 100:
                print(f"{tried} sequences, {wrong} of them went wrong", flush=True)
    print(f"{tried} sequences, {wrong} of them went wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
