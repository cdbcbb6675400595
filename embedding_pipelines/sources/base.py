"""The contract of a source: its options, the files it names, and the batches of documents it
yields.

Here stands what is true of every format. How bytes become text is in `text.py`, how a path becomes
files in `paths.py`, how columns become documents in `columns.py`; each format has its own module.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import BeforeValidator, Field, field_validator

from embedding_pipelines import schemas
from embedding_pipelines.errors import SourceError, did_you_mean
from embedding_pipelines.plugins import Choice
from embedding_pipelines.sources import paths
from embedding_pipelines.sources.paths import SourceFile as SourceFile  # part of this contract


@dataclass(frozen=True)
class Rejection:
    """One record that did not become a document.

    `row` counts as `source_row` does. `raw` is the record as it stood in the file, without its line
    end; a JSON array has no such bytes, so there it is the element written as JSON again.
    """

    file: str
    row: int
    reason: str
    raw: bytes


@dataclass
class ReadLog:
    """What reading one file told besides documents."""

    reject: Callable[[Rejection], None]
    encoding: str | None = None  # of a text format, e.g. "utf-8", "utf-8-sig", "cp1252"
    notes: list[str] = field(default_factory=list)


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_one_or_many)]


class Source(Choice):
    """Where documents come from; subclasses read one file format each.

    Columns are named as in the file; `a.b` also reaches field `b` of `a` in nested formats.
    """

    suffixes: ClassVar[tuple[str, ...]]  # of the files that a folder stands for, in lower case

    path: Names
    id: str | None = None
    text: Names = ("text",)
    metadata: dict[str, str] = Field(
        default={}
    )  # column in the file -> a key of schemas.METADATA_TYPES
    max_rejected: int | float = 0.01  # a whole number of rows, or a fraction of all rows

    @field_validator("path", "text")
    @classmethod
    def _names_something(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not all(value):
            raise ValueError("must name at least one, and none of them may be empty")
        return value

    @field_validator("path")
    @classmethod
    def _globs_are_whole(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            if any("**" in part and part != "**" for part in entry.split("/")):
                raise ValueError(
                    f"in {entry!r}, '**' must stand alone between slashes, as in 'data/**/*.csv'"
                )
        return value

    @field_validator("id")
    @classmethod
    def _id_is_named(cls, value: str | None) -> str | None:
        if value == "":
            raise ValueError("must name a column; leave it out to number the rows of each file")
        return value

    @field_validator("metadata", mode="before")
    @classmethod
    def _names_are_strings(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        if len({*map(str, value)}) < len(value):
            raise ValueError("names a column twice; name it once")
        return dict.fromkeys(value, "string")

    @field_validator("metadata")
    @classmethod
    def _columns_are_free(cls, value: dict[str, str]) -> dict[str, str]:
        taken: dict[str, str] = {}
        for path, kind in value.items():
            if kind not in schemas.METADATA_TYPES:
                known = ", ".join(schemas.METADATA_TYPES)
                raise ValueError(f"{path!r} is declared as {kind!r}; declare it as one of {known}")
            name = column_name(path)
            if not name:
                raise ValueError("a column's name may not be empty; leave it out")
            if name in schemas.RESERVED:
                raise ValueError(
                    f"{name!r} is a column that the pipeline makes itself; leave it out of source.metadata, "
                    "or give it another name in the file"
                )
            if name in taken:
                raise ValueError(
                    f"{taken[name]!r} and {path!r} would both be column {name!r}; leave one out"
                )
            taken[name] = path
        return value

    @field_validator("max_rejected", mode="before")
    @classmethod
    def _share_or_count(cls, value: Any) -> Any:
        """`"1%"` and `0.01` are a fraction, `5` and `"5"` are rows."""
        problem = f"{value!r} is neither a percentage such as '1%', a fraction of rows such as 0.01 nor a count"
        if isinstance(value, str):
            try:
                percent = value.strip().endswith("%")
                value = float(value.strip()[:-1]) / 100 if percent else int(value)
            except ValueError:
                raise ValueError(problem) from None
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise ValueError(problem)
        if isinstance(value, float) and value > 1:
            raise ValueError(
                f"a fraction of rows is at most 1.0, not {value!r}; write a whole number for rows"
            )
        return value

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column of the file that is read, once each: id, text, metadata."""
        first = () if self.id is None else (self.id,)
        return tuple(dict.fromkeys((*first, *self.text, *self.metadata)))

    @property
    def metadata_types(self) -> dict[str, str]:
        """Metadata columns of the documents, in declared order; `a.b` of the file is `a_b` here."""
        return {column_name(path): kind for path, kind in self.metadata.items()}

    @property
    def schema(self) -> pa.Schema:
        """Schema of every batch that `read` yields."""
        return schemas.documents_schema(self.metadata_types)

    def allows(self, rejected: int, total: int) -> bool:
        """Whether `rejected` of `total` records (documents and rejections together) may be
        refused."""
        limit = (
            self.max_rejected if isinstance(self.max_rejected, int) else self.max_rejected * total
        )
        return rejected <= limit

    def files(self, home: Path) -> list[SourceFile]:
        """All files that `path` names, sorted by name, each once; relative entries are below
        `home`.

        Raises SourceError if an entry matches nothing or cannot be looked at.
        """
        return paths.find(self.path, home, self.suffixes)

    @abstractmethod
    def read(self, file: SourceFile, log: ReadLog) -> Iterator[pa.RecordBatch]:
        """Documents of one file in `schema`, at most `columns.BATCH_ROWS` rows and about 16 MB a
        batch.

        A record that cannot be a document goes to `log.reject`; records = documents + rejections.
        Raises SourceError for what cannot be read at all; batches yielded before it do not count.
        """

    def missing(self, where: str, column: str, found: Iterable[str], hint: str = "") -> SourceError:
        """The error for a column that the file does not have; `found` are those that it has."""
        names = list(dict.fromkeys(found))
        listed = ", ".join(map(repr, names[:20])) + (", …" if len(names) > 20 else "")
        option = "id" if column == self.id else "text" if column in self.text else "metadata"
        return SourceError(
            f"{where}: column {column!r} is missing; found {listed or 'none'}.{did_you_mean(column, names)} "
            f"Set source.{option} to {'one of them' if names else 'a column that is there'}.{hint}"
        )


def column_name(path: str) -> str:
    """Name of a metadata column among the documents: dots would mean nested fields in filters."""
    return path.replace(".", "_")
