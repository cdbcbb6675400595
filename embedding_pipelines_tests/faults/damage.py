"""Damages a random file of a small warehouse, then searches, runs and searches again.

    python -m embedding_pipelines_tests.faults.damage 1000 [--seed 0]
    python -m embedding_pipelines_tests.faults.damage 500 --flips

`--flips`: one byte of each file in turn, at places that lie evenly over it, is another one.
Each damage ends in one way: `right` (nobody needed the file), `healed` (the run put it right, and
before it searches were right or said a sentence), `told` (the run says a sentence and stops),
`silently wrong` or `traceback`. The last two are faults of the package, and the exit status is 1.
Each line names the seed that repeats it.
"""

import argparse
import contextlib
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedding_pipelines.environment import instance_folder
from embedding_pipelines.errors import EmbeddingPipelinesError
from embedding_pipelines.files import write_json
from embedding_pipelines.forget.forget import forget
from embedding_pipelines.orchestration.instance import ensure_instance_folder
from embedding_pipelines.releases import read_history, rollback
from embedding_pipelines.run import Run
from embedding_pipelines.search import Searcher
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.status import pipeline_status
from embedding_pipelines.steps.chain import up_to_date
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import live_rows, run_of, steps, write_csv, write_pipeline
from embedding_pipelines_tests.runs import Collected

PIPELINE = """\
source: {kind: csv, path: 'data/*.csv', id: id, text: [title], metadata: [cat], max_rejected: 2}
model: {provider: hashing, dimensions: 32}
partitions: 2
compression: [{kind: pca, dimensions: 16}]
evaluation: {known_items: 8, may_shrink: 1}
"""
QUERIES = ["word3 text number 3", "number 17", "word1"]
FAULTS = ("silently wrong", "traceback")


@dataclass(frozen=True)
class Result:
    """What became of one damage."""

    file: str
    damage: str
    outcome: str
    words: str = ""  # of an error, or of what was wrong


def build(home: Path) -> None:
    """A home whose pipeline `p` has two releases, rejected records and a run on record."""
    write_pipeline(home, "p", PIPELINE)
    for change in ("", " changed"):
        rows = [(n, f"word{n % 7} text number {n}", f"c{n % 3}") for n in range(50)]
        rows[4] = (4, f"another text{change}", "c1")
        write_csv(home, "a.csv", [*rows, ("5", "too", "many", "cells")])
        with run_of(home, "p") as run:
            list(steps(run))
            if not change:
                forget(run, ["49"], [])
    ensure_instance_folder(home)
    write_json(Warehouse(home).pipeline("p").last_run, {"instance": str(instance_folder(home))})


def files_of(home: Path) -> list[Path]:
    """What a run has written, without locks and without Dagster's own files."""
    root = Warehouse(home).root
    files = (path for path in root.rglob("*") if path.is_file() and path.suffix != ".lock")
    return sorted(path for path in files if not path.is_relative_to(instance_folder(home)))


def flip(content: bytes, choice: random.Random) -> bytes:
    if not content:
        return b"\x01"
    damaged = bytearray(content)
    damaged[choice.randrange(len(content))] ^= 1 << choice.randrange(8)
    return bytes(damaged)


def shorten(content: bytes, choice: random.Random) -> bytes:
    return content[: choice.randrange(len(content) or 1)]


def swap_letter(content: bytes, choice: random.Random) -> bytes:
    places = [at for at, byte in enumerate(content) if chr(byte).isalnum()]
    if not places:
        return b"x"
    damaged = bytearray(content)
    damaged[choice.choice(places)] = ord(choice.choice("abcxyz019"))
    return bytes(damaged)


DAMAGES: Mapping[str, Callable[[bytes, random.Random], bytes | None]] = {
    "flipped bit": flip,
    "cut short": shorten,
    "empty": lambda content, choice: b"",
    "deleted": lambda content, choice: None,
    "zeros": lambda content, choice: bytes(len(content)),
    "another letter": swap_letter,
    "{}": lambda content, choice: b"{}",
    "[]": lambda content, choice: b"[]\n",
    "null": lambda content, choice: b"null",
    "deep": lambda content, choice: b"[" * 100_000,
    "other types": lambda content, choice: b'{"live": "x", "releases": {}, "files": 3, "rows": []}',
}


def damage(path: Path, kind: str, choice: random.Random) -> None:
    content = DAMAGES[kind](path.read_bytes(), choice)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


def answers(home: Path) -> list[Any]:
    """What a few searches return, to the last digit of their scores but three."""
    with Searcher(Warehouse(home), "p") as searcher:
        hits = [searcher.search(query, 5).hits for query in QUERIES]
    return [
        [(hit.chunk_id, hit.text, hit.metadata, round(hit.score, 4)) for hit in each]
        for each in hits
    ]


def run(home: Path) -> list[str]:
    """One run, as the command line does it but for Dagster; its notes."""
    progress = Collected()
    with Run(find_pipeline("p", home), Warehouse(home), progress) as pipeline:
        if up_to_date(pipeline, instance_folder(home)) is None:
            list(steps(pipeline))
    return progress.notes


def look(home: Path) -> None:
    """Commands that read."""
    warehouse, spec = Warehouse(home), find_pipeline("p", home)
    pipeline_status(spec, warehouse)
    read_history(warehouse.pipeline("p"))


def try_damage(built: Path, home: Path, file: str, kind: str, choice: random.Random) -> Result:
    """Damage one file of a copy of `built`, and see what comes of it."""
    return try_change(built, home, file, kind, lambda path: damage(path, kind, choice))


def try_change(
    built: Path, home: Path, file: str, kind: str, change: Callable[[Path], object]
) -> Result:
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(built, home)
    expected, rows = answers(built), live_rows(built, "p")
    change(home / file)
    sentences: list[str] = []

    @contextlib.contextmanager
    def sentence() -> Iterator[None]:
        try:
            yield
        except EmbeddingPipelinesError as error:
            sentences.append(str(error))

    try:
        for step in (lambda: answers(home), lambda: look(home)):
            with sentence():
                if (given := step()) is not None and given != expected:
                    return Result(file, kind, "silently wrong", f"before the run: {given}")
        before = len(sentences)
        with sentence():
            sentences += run(home)
            before = len(sentences)
            if answers(home) != expected or not _same(live_rows(home, "p"), rows):
                return Result(file, kind, "silently wrong", f"after the run: {sentences}")
        if len(sentences) > before:
            return Result(file, kind, "told", sentences[-1])
        with sentence():  # what the source holds is looked at once more, and what was forgotten
            (home / "data" / "a.csv").touch()
            sentences += run(home)
            before = len(sentences)
            if not _same(live_rows(home, "p"), rows):
                return Result(file, kind, "silently wrong", f"read again: {sentences}")
        if len(sentences) > before:
            return Result(file, kind, "told", sentences[-1])
        with sentence():
            look(home)
            rollback(Warehouse(home).pipeline("p"), None)
            live_rows(home, "p")
    except Exception:  # noqa: BLE001  # that is what is looked for
        return Result(file, kind, "traceback", traceback.format_exc())
    return Result(file, kind, "healed" if sentences else "right", "; ".join(sentences))


def _same(left: dict[str, dict[str, Any]], right: dict[str, dict[str, Any]]) -> bool:
    names = ("text", "cat", "start", "end", "document_id", "chunk_digest", "partition")
    return {key: [row[name] for name in names] for key, row in left.items()} == {
        key: [row[name] for name in names] for key, row in right.items()
    }


def sweep(count: int, seed: int, folder: Path) -> Iterator[Result]:
    """`count` damages; files and kinds of damage are chosen evenly."""
    built = folder / "built"
    built.mkdir()
    build(built)
    files = [path.relative_to(built).as_posix() for path in files_of(built)]
    for number in range(seed, seed + count):
        choice = random.Random(number)  # nothing secret
        file, kind = choice.choice(files), choice.choice(list(DAMAGES))
        yield try_damage(built, folder / "home", file, kind, choice)


def flips(count: int, seed: int, folder: Path) -> Iterator[Result]:
    """`count` bytes, one file after the other, each at another place when its turn comes again."""
    built = folder / "built"
    built.mkdir()
    build(built)
    files = [path for path in files_of(built) if path.stat().st_size]
    turns = -(-count // len(files))
    for number in range(count):
        path, turn = files[number % len(files)], number // len(files)
        choice = random.Random(seed + number)  # nothing secret
        place = int((turn + choice.random()) / turns * path.stat().st_size)
        other = choice.randrange(1, 256)

        def change(damaged: Path, place: int = place, other: int = other) -> None:
            content = bytearray(damaged.read_bytes())
            content[place] ^= other
            damaged.write_bytes(content)

        file = path.relative_to(built).as_posix()
        yield try_change(built, folder / "home", file, f"byte {place} ^ {other}", change)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--flips", action="store_true", help="one byte of each file in turn")
    options = parser.parse_args()
    outcomes, files = Counter[str](), set[str]()
    with tempfile.TemporaryDirectory() as folder:
        tries = flips if options.flips else sweep
        results = tries(options.count, options.seed, Path(folder))
        for number, result in enumerate(results, options.seed):
            outcomes[result.outcome] += 1
            files.add(result.file)
            words = result.words if result.outcome in FAULTS else result.words[:150]
            print(
                f"{number} {result.outcome}: {result.damage} in {result.file} {words}", flush=True
            )
    print(f"{dict(outcomes)} in {len(files)} files")
    sys.exit(any(outcomes[fault] for fault in FAULTS))


if __name__ == "__main__":
    main()
