"""The systems that are measured side by side: one file each, found by its presence; the base they
share.

A system is the one subclass of `System` in its file, called as the file. `python -m
benchmarks.systems NAME sync FOLDER` brings its store, anywhere below FOLDER, up to date with
FOLDER/corpus/*.jsonl and prints a JSON line.
"""

import importlib
import json
import os
import pkgutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks.errors import BenchmarkError
from benchmarks.exact import Vectors

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
WEIGHTS_VARIABLE = "BENCHMARK_WEIGHTS"
MAX_TOKENS = 256  # what the model's own files say; all systems cut there


@dataclass
class Stored:
    """All that a store holds."""

    ids: list[str]
    vectors: Vectors  # float32[n, d]
    texts: list[str] | None = (
        None  # what was embedded, where a system stores less than the whole document
    )


@dataclass
class Synced:
    """What a system says about one run."""

    embedded: int  # texts that reached the model
    notes: list[str] = field(default_factory=list)  # what a reader of the table has to know


class System(ABC):
    """One way to keep a vector store true to a corpus."""

    title: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ()  # distributions whose versions the report shows
    warms: ClassVar[
        tuple[str, ...]
    ] = ()  # modules that are imported once, unmeasured: byte code and page cache
    remembers: ClassVar[bool] = (
        True  # False: every run does everything again, so one of them tells it all
    )

    @property
    def name(self) -> str:
        return type(self).__module__.rsplit(".", 1)[1]

    def versions(self) -> dict[str, str]:
        """BenchmarkError if one of the distributions is not installed."""
        try:
            return {name: version(name) for name in self.requires}
        except PackageNotFoundError as error:
            raise BenchmarkError(
                f"{self.title} needs the package {error.name}, which is not installed: pip install -e '.[bench]', "
                "or leave it out by --systems."
            ) from error

    def step(self, name: str, folder: Path, *more: str) -> list[str]:
        """The command that calls `sync`, `dump` or `prepare` in a process of its own."""
        return [sys.executable, "-m", "benchmarks.systems", self.name, name, str(folder), *more]

    def command(self, folder: Path) -> list[str]:
        """What is run and measured."""
        return self.step("sync", folder)

    def read(self, stdout: str) -> Synced:
        """What the measured command said."""
        return Synced(**json.loads(stdout.splitlines()[-1]))

    def text(self, text: str) -> str:
        """The text that the system means to embed for a document's text."""
        return text

    def prepare(self, folder: Path) -> None:
        """What is done once per machine or pipeline, by hand or before the first run, not for each
        corpus."""
        for module in self.warms:
            importlib.import_module(module)

    @abstractmethod
    def sync(self, folder: Path) -> Synced:
        """Bring the store up to date with the corpus in `folder`."""

    @abstractmethod
    def dump(self, folder: Path) -> Stored:
        """All that the store holds; nothing if there is none yet."""


def all_systems() -> dict[str, System]:
    """Every system by its name; nothing of theirs is imported yet."""
    systems: dict[str, System] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name.startswith("_"):
            continue
        members = vars(importlib.import_module(f"{__name__}.{module.name}")).values()
        (cls,) = {
            member
            for member in members
            if isinstance(member, type)
            and issubclass(member, System)
            and member.__module__.endswith(module.name)
        }
        systems[module.name] = cls()
    return systems


def weights_folder() -> Path:
    """The folder that holds the model: the same files for every system."""
    if named := os.environ.get(WEIGHTS_VARIABLE):
        return Path(named)  # looked for and checked once, so that no peer pays for it
    from embedding_pipelines.inference.weights import model_folder

    return model_folder(MODEL, None, Path(__file__).parent)


@contextmanager
def counted(owner: type, method: str) -> Iterator[Synced]:
    """Counts the texts that reach `owner.method(self, texts, ...)`, whoever calls it."""
    synced = Synced(0)
    original: Any = getattr(owner, method)

    @wraps(original)
    def counting(self: Any, texts: Any, *arguments: Any, **options: Any) -> Any:
        synced.embedded += 1 if isinstance(texts, str) else len(texts)
        return original(self, texts, *arguments, **options)

    setattr(owner, method, counting)
    try:
        yield synced
    finally:
        setattr(owner, method, original)


def lance_rows(folder: Path, table: str, id_column: str, vector_column: str) -> Stored:
    """All rows of a LanceDB table; none if there is no such table."""
    import lancedb

    connection = lancedb.connect(folder)
    if table not in connection.list_tables().tables:
        return Stored([], np.zeros((0, 0), np.float32))
    rows = (
        connection.open_table(table)
        .search()
        .select([id_column, vector_column])
        .limit(None)
        .to_arrow()
    )
    column: Any = rows[vector_column].combine_chunks()
    vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    return Stored(rows[id_column].to_pylist(), vectors.astype(np.float32))
