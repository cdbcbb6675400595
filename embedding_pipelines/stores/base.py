"""What every store does: hold versions of a table, take differences, index, search one version."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from embedding_pipelines.plugins import Choice

Metric = Literal["cosine", "hamming"]

# The numbers that codes are made of, as Arrow keeps them; binary: eight bits in each.
NUMBER_TYPES: dict[str, pa.DataType] = {
    "float32": pa.float32(),
    "float16": pa.float16(),
    "int8": pa.int8(),
    "binary": pa.uint8(),
}


class Table(ABC):
    """One table of vectors of one space. Reading methods see the newest version unless told
    another."""

    @property
    @abstractmethod
    def version(self) -> int | None:
        """The newest version, None if the table does not exist yet."""

    @abstractmethod
    def apply(
        self, schema: pa.Schema, remove: Sequence[str], add: Iterable[pa.RecordBatch]
    ) -> None:
        """Remove rows by chunk id, then add rows of `schema`; creates the table if there is none.

        Two commits: readers keep to the version that the live release names.
        """

    @abstractmethod
    def index(self, metric: Metric, trained_rows: int) -> int:
        """Bring the table into its final form for this version: not scattered over many small
        files, with the vector index that the store's options name where it is large enough for one,
        and without old versions that `tag` does not name.

        What is small enough may wait: searches find all rows, indexed or not.

        `trained_rows` is what the last training saw (0: never); returns the same for now.
        """

    @abstractmethod
    def rows(self, version: int | None = None) -> int: ...

    @abstractmethod
    def schema(self, version: int | None = None) -> pa.Schema: ...

    @abstractmethod
    def scan(
        self, columns: Sequence[str], partition: str | None = None, version: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Some columns of all rows, or of one partition's."""

    @abstractmethod
    def search(
        self,
        vector: NDArray[np.generic],
        k: int,
        metric: Metric,
        filter: str | None,
        version: int,
        rescoring: bool = False,
    ) -> pa.Table:
        """The `k` nearest rows, nearest first, without the vector and with `_distance` float32.

        `vector` is float[d], for hamming packed bits uint8[d / 8]. `filter` is an SQL condition on
        the metadata columns. With `rescoring` the rows hold `rescoring_vector` too, of a table that has it.
        Raises StoreError if the filter is wrong.
        """

    @abstractmethod
    def tag(self, versions: Mapping[str, int]) -> None:
        """Let these versions (by tag) outlive what `index` removes, and no others."""

    @abstractmethod
    def size_bytes(self) -> int:
        """What the table takes on disk, all its versions together."""


class Store(Choice):
    """Where the vectors of a pipeline are kept and searched."""

    keep_releases: int = Field(
        5, ge=2
    )  # releases that a rollback can go back to, the live one included

    def check(self, dtype: str, dimensions: int) -> None:
        """ConfigError if codes of `dimensions` numbers of `dtype` cannot be kept or searched as the
        options say.

        `dtype` is a codec's: float32, float16, int8 or binary. What is not refused here can be
        kept.
        """

    def column_type(self, dtype: str) -> pa.DataType:
        """What one number of such codes is in the table's column of vectors."""
        return NUMBER_TYPES[dtype]

    @property
    def layout(self) -> str:
        """The options that decide what a table holds and how it is indexed; the others decide how
        it is searched."""
        return self.model_dump_json()

    @abstractmethod
    def table(self, folder: Path, name: str) -> Table:
        """A table by name in the store's folder; it need not exist yet."""

    @abstractmethod
    def names(self, folder: Path) -> list[str]:
        """All tables in the folder."""

    @abstractmethod
    def drop(self, folder: Path, name: str) -> None:
        """Remove a table with all its versions."""
