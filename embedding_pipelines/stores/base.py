"""The contract of a store: versions of a table, changed by differences, indexed and searched."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from embedding_pipelines.files import delete
from embedding_pipelines.plugins import Choice
from embedding_pipelines.vectors import Distance

# A condition, or what `filters.py filter_of` makes one of: a value, or comparisons, by column.
Filter = str | Mapping[str, Any]
# The Arrow types of the numbers in a code; a binary one holds eight bits.
NUMBER_TYPES: dict[str, pa.DataType] = {
    "float32": pa.float32(),
    "float16": pa.float16(),
    "int8": pa.int8(),
    "binary": pa.uint8(),
}


class Searchable(Protocol):
    """Rows of one space that can be searched. The methods are those of a `Table`."""

    def search(
        self,
        vector: NDArray[np.generic],
        k: int,
        metric: Distance,
        filter: Filter | None,
        version: int,
        rescoring: bool = False,
        names: Mapping[str, str] | None = None,
        only: Sequence[str] | None = None,
    ) -> pa.Table: ...

    def search_text(
        self,
        text: str,
        k: int,
        filter: Filter | None,
        version: int,
        names: Mapping[str, str] | None = None,
        only: Sequence[str] | None = None,
    ) -> pa.Table: ...


class Table(ABC):
    """A table of vectors of one space. Methods read the newest version unless given another."""

    @property
    @abstractmethod
    def version(self) -> int | None:
        """The newest version; None if the table does not exist.

        Raises StoreError or OSError where that cannot be known.
        """

    @abstractmethod
    def lacks(self, version: int) -> bool:
        """Whether a version is gone, for sure: what cannot be read now may come back.

        Raises OSError where that cannot be known.
        """

    @abstractmethod
    def withdraw(self, version: int | None) -> None:
        """Make `version` the newest one again, by withdrawing those after it; with None the whole
        table. They need not be readable."""

    @abstractmethod
    def damage(self, version: int, most_bytes: int | None = None) -> str | None:
        """Whether the files that `version` reads are as `index` left them: None, or in a few words
        what is not. `most_bytes`: compare a part of them, chosen by chance."""

    @abstractmethod
    def leads_elsewhere(self) -> bool:
        """Whether a version of it names files outside its own folder, as one that somebody else has
        made might."""

    @abstractmethod
    def has_only(self, version: int) -> bool:
        """Whether the disk holds nothing of the table but this version's rows: neither an older one
        nor a row that was deleted."""

    @property
    @abstractmethod
    def folder_of_files(self) -> Path:
        """The folder of the table's own files."""

    @abstractmethod
    def apply(
        self, schema: pa.Schema, remove: Iterable[str], add: Iterable[pa.RecordBatch]
    ) -> None:
        """Remove rows by chunk id, then add rows of `schema`; create the table if there is none.

        These are two commits; readers keep to the version that the live release names.
        """

    @abstractmethod
    def index(self, metric: Distance, trained_rows: int, language: str | None = None) -> int:
        """Finish this version: merge small files, update the vector index that the store's options
        name if the table is large enough for one, and remove old versions that have no tag. The
        texts have a full-text index if their `language` is given.

        Small rests may wait: searches find all rows, indexed or not; and rows that were deleted may
        stay in their files for a few updates. `trained_rows` is how many the last training saw (0:
        never); returns the same after this call.
        """

    @abstractmethod
    def rows(self, version: int | None = None) -> int: ...

    @abstractmethod
    def schema(self, version: int | None = None) -> pa.Schema: ...

    @abstractmethod
    def scan(
        self, columns: Sequence[str], partition: str | None = None, version: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Some columns of all rows, or of one partition."""

    @abstractmethod
    def columns(self, version: int) -> list[str]:
        """The columns that a search returns, but for the distance."""

    @abstractmethod
    def search(
        self,
        vector: NDArray[np.generic],
        k: int,
        metric: Distance,
        filter: Filter | None,
        version: int,
        rescoring: bool = False,
        names: Mapping[str, str] | None = None,
        only: Sequence[str] | None = None,
    ) -> pa.Table:
        """The `k` nearest rows, nearest first, without the vector and with `_distance` float32.

        `vector` is float[d], for hamming packed bits uint8[d / 8]. `filter` is a condition on
        ids, text and metadata (`filters.py`). With `rescoring` the rows also hold the table's
        `rescoring_vector`. `names` says what columns of the source are called in the table, for
        the StoreError that a wrong filter raises. `only`: no rows but those of these documents.
        """

    def search_many(
        self,
        vectors: NDArray[np.generic],
        k: int,
        metric: Distance,
        version: int,
        rescoring: bool = False,
    ) -> Iterator[pa.Table]:
        """For each of `vectors` [n, d] what `search` returns, rows at the same distance perhaps in
        another order. Stores override it where one call for many is cheaper."""
        for vector in vectors:
            yield self.search(vector, k, metric, None, version, rescoring)

    @abstractmethod
    def search_text(
        self,
        text: str,
        k: int,
        filter: Filter | None,
        version: int,
        names: Mapping[str, str] | None = None,
        only: Sequence[str] | None = None,
    ) -> pa.Table:
        """The `k` rows whose texts have the words of `text` by BM25, best first, without the vector
        and with `_score` float32; fewer if fewer have one. The rest is as in `search`."""

    @abstractmethod
    def has_text_index(self, version: int) -> bool:
        """Whether texts are searched through an index; without one all are read, and words have to
        be the same letter by letter."""

    @abstractmethod
    def tag(self, versions: Mapping[str, int]) -> None:
        """Keep these versions (by tag); `index` removes all others but the newest. Those that are
        gone get no tag."""

    @abstractmethod
    def size_bytes(self) -> int:
        """The size of all versions on disk."""

    def garbage(self, versions: Collection[int]) -> list[Path]:
        """The files that neither these versions nor the newest one needs; there is no other
        writer."""
        return []

    def delete_garbage(self, versions: Collection[int]) -> None:
        """Delete them."""
        for path in self.garbage(versions):
            delete(path)


@dataclass(frozen=True)
class IndexChoice:
    """One way to index a table's vectors."""

    store: "Store"  # with the options that choose it
    name: str = "none"
    bits: int = 0  # of a number in the index; 0: there is none
    finer: Mapping[int, "Store"] = field(default_factory=dict)  # the store by its `refine`


class Store(Choice):
    """Where the vectors of a pipeline are kept and searched."""

    keep_releases: int = Field(5, ge=2)  # for a rollback; the live one included

    def check(self, dtype: str, dimensions: int) -> None:
        """ConfigError if the options do not fit codes of `dimensions` numbers of `dtype`.

        `dtype` is a codec's: float32, float16, int8 or binary.
        """

    def index_choices(self, rows: int) -> list[IndexChoice]:
        """The indices that `optimize` measures for a table of so many rows."""
        return [IndexChoice(self)]

    def column_type(self, dtype: str) -> pa.DataType:
        """The Arrow type in the vector column of one number of such codes."""
        return NUMBER_TYPES[dtype]

    @property
    def layout(self) -> str:
        """The options that decide a table's content and index, unlike those of a search."""
        return self.model_dump_json()

    @abstractmethod
    def table(self, folder: Path, name: str, index_memory: int | None = None) -> Table:
        """The table of this name in the store's folder, whether it exists or not.

        `index_memory`: bytes of its index that may stay in memory between searches, as a run says
        that shares its machine; None: as the store has it."""

    @abstractmethod
    def in_memory(self, rows: pa.Table, language: str | None = None) -> Table:
        """A table of a few rows for searches alone, which compare all of them; its version is 1.
        Nothing of it is ever on a disk. `language` as in `Table.index`."""

    @abstractmethod
    def score_texts(
        self, query: str, texts: Mapping[str, str], language: str | None
    ) -> dict[str, float]:
        """BM25 of texts by name, among each other alone; those without a word of `query` are
        missing."""

    @abstractmethod
    def names(self, folder: Path) -> list[str]:
        """All tables in the folder."""

    @abstractmethod
    def drop(self, folder: Path, name: str) -> None:
        """Remove a table with all its versions."""
