"""Cleaning a home's warehouse: what no release, no candidate and no next run needs goes."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from embedding_pipelines.cache_use import expire_unused
from embedding_pipelines.errors import EmbeddingPipelinesError
from embedding_pipelines.progress import Silent
from embedding_pipelines.remote import is_whole, writing
from embedding_pipelines.run import Run
from embedding_pipelines.spec.load import read_pipelines
from embedding_pipelines.steps.garbage import Garbage, delete_garbage, find_garbage
from embedding_pipelines.storage.bucket import cache_rules
from embedding_pipelines.storage.warehouse import Warehouse

DAY_SECONDS = 86_400


@dataclass(frozen=True)
class Cleaning:
    """What went, or would go, and what was left alone."""

    garbage: dict[str, list[Garbage]]  # by pipeline
    vectors: int  # of the embedding cache
    vector_bytes: int
    left_alone: list[str] = field(default_factory=list)  # a sentence each
    partial: list[str] = field(default_factory=list)  # pipelines of which this machine has a part

    @property
    def size_bytes(self) -> int:
        files = sum(entry.size_bytes for each in self.garbage.values() for entry in each)
        return files + self.vector_bytes


def clean(home: Path, look_only: bool = False) -> Cleaning:
    """Delete the garbage of all pipelines of a home, and those vectors of the embedding cache that
    `warehouse.yaml` lets go; with `look_only` say what that is, and write nothing.

    What is at work, or cannot be read, is left alone, and said, as are pipelines of which this
    machine has only what a search reads: those are cleaned where they run. Releases that can be gone back to,
    the newest candidate, and the vectors that a pipeline uses always stay.
    """
    warehouse, (specs, broken) = Warehouse(home), read_pipelines(home)
    garbage, left_alone = (
        dict[str, list[Garbage]](),
        [
            f"{path.name} cannot be read: {str(error).splitlines()[0]}"
            for path, error in broken.items()
        ],
    )
    partial = list[str]()
    for name, spec in specs.items():
        run = Run(spec, warehouse)
        if not run.folder.folder.exists():
            continue
        try:
            if not is_whole(warehouse, name):  # what it lacks would count as needed by nothing
                partial.append(name)
                continue
            with _locked(run, look_only):
                garbage[name] = find_garbage(run)
                if garbage[name] and not look_only:
                    with writing(warehouse, name, Silent()):
                        garbage[name] = delete_garbage(run)
        except EmbeddingPipelinesError as error:
            left_alone.append(f"{name}: {error}")
    vectors = size = 0
    try:
        today = int(time.time() // DAY_SECONDS)
        vectors, size = expire_unused(home, cache_rules(home), today, look_only)
    except EmbeddingPipelinesError as error:
        left_alone.append(f"embedding cache: {error}")
    return Cleaning(garbage, vectors, size, left_alone, partial)


@contextlib.contextmanager
def _locked(run: Run, look_only: bool) -> Iterator[None]:
    """Nobody else is at work on the pipeline. Raises BusyError."""
    if look_only:
        with run.folder.lock_to_read():
            yield
        return
    with run.folder.lock("run", timeout_seconds=0), run.folder.lock(timeout_seconds=0):
        yield
