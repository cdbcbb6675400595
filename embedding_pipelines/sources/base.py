"""The contract of a source: it lists its parts, with a stamp that changes with what is in them, and
each part yields documents. Of most sources a part is a file.

This module holds what every source shares; each kind has its own. `paths.py` finds files, `text.py`
decodes them, `columns.py` makes documents of columns.
"""

import contextlib
import functools
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import BeforeValidator, Field, field_validator

from embedding_pipelines import schemas
from embedding_pipelines.errors import SourceError, did_you_mean
from embedding_pipelines.plugins import Choice
from embedding_pipelines.sources import paths
from embedding_pipelines.sources.inputs import Input as Input  # these are part of this contract
from embedding_pipelines.sources.inputs import SourceFile as SourceFile
from embedding_pipelines.sources.inputs import Stamp as Stamp
from embedding_pipelines.sources.inputs import fetched as fetched
from embedding_pipelines.sources.parts import Fields
from embedding_pipelines.sources.values import split_unit

SHOWN_COLUMNS = 20  # in an error
SHOWN_CHARACTERS = 60  # of a column's name


@dataclass(frozen=True)
class Rejection:
    """A record that cannot be a document.

    `row` counts as `source_row` does. `raw` holds the record's bytes without the line end; of a
    JSON array, whose elements have no such bytes, the element as JSON.
    """

    file: str
    row: int
    reason: str
    raw: bytes


@dataclass
class ReadLog:
    """What a source reports about one file besides its documents; `join` is how the reader wants a
    list where a text is read: its parts in lines, unless told otherwise."""

    reject: Callable[[Rejection], None]
    join: Callable[[Sequence[str]], str] = "\n".join
    encoding: str | None = None  # of a text format, e.g. "utf-8", "utf-8-sig", "cp1252"
    absent: dict[str, Counter[str]] = field(default_factory=dict)  # column -> words for no value
    lacking: list[str] = field(default_factory=list)  # columns of the pipeline that are not there
    columns: list[str] = field(default_factory=list)  # some that are, if any is lacking
    id_cell: tuple[str, int] | None = None  # of CSV: delimiter, and the id's place among the cells
    hint: str = ""  # why columns may be lacking: what the file may be instead
    fields: Fields | None = (
        None  # of a part of a file without a header: what lacks is not clear yet
    )
    notes: list[str] = field(default_factory=list)


Reading = tuple[SourceFile, Callable[[ReadLog], Iterator[pa.RecordBatch]]]

Names = Annotated[
    tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
]


class Source(Choice):
    """Where documents come from; each kind is a subclass, or one of `FileSource`.

    Options name columns as the source does; in nested formats `a.b` is field `b` of `a`. The words
    of `missing` are no value where a number, a boolean or a time is declared, as an empty text is;
    in ids, texts and strings they are what they say.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()  # which files of a folder to read; in lower case
    unit: ClassVar[str] = "file"  # what one of its parts is, for people
    has_images: ClassVar[bool] = False  # whether documents have the columns schemas.IMAGE and URI
    is_portable: ClassVar[bool] = False  # whether `read` takes a file on any machine that sees it
    own_columns: ClassVar[frozenset[str]] = (
        frozenset()
    )  # of metadata: what it says itself, nobody else

    id: str | None = None
    text: Names = ("text",)
    metadata: dict[str, str] = Field({})  # column in the file -> METADATA_TYPES, timestamp[s] …
    missing: Names = ("NA", "N/A", "#N/A", "<NA>", "NaN", "NaT", "null", "none")  # in any case
    nanoseconds: Literal["reject", "cut"] = "reject"  # of a timestamp, which holds microseconds
    duplicates: Literal["reject", "first", "last", "error"] = "reject"  # of one id, by file and row
    max_rejected: int | float = 0.01  # an int counts rows, a float is a fraction of all rows

    @field_validator("text")
    @classmethod
    def _check_text(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _names(value)

    @field_validator("id")
    @classmethod
    def _check_id(cls, value: str | None) -> str | None:
        if value == "":
            raise ValueError("must name a column; leave it out to number the rows of each file")
        return value

    @field_validator("metadata", mode="before")
    @classmethod
    def _default_to_strings(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        if len({*map(str, value)}) < len(value):
            raise ValueError("names a column twice; name it once")
        return dict.fromkeys(value, "string")

    @field_validator("metadata")
    @classmethod
    def _check_metadata(cls, value: dict[str, str]) -> dict[str, str]:
        paths: dict[str, str] = {}
        for path, kind in value.items():
            name = column_name(path)
            if split_unit(kind)[0] not in schemas.METADATA_TYPES:
                kinds = ", ".join(schemas.METADATA_TYPES)
                raise ValueError(f"{path!r} is declared as {kind!r}; declare it as one of {kinds}")
            if not name:
                raise ValueError("a column has an empty name; leave it out")
            if name in schemas.RESERVED:
                raise ValueError(
                    f"{name!r} is a column that the pipeline makes itself; leave it out of "
                    "source.metadata, or rename it in the file"
                )
            if name in paths:
                raise ValueError(
                    f"{paths[name]!r} and {path!r} would both be column {name!r}; leave one out"
                )
            paths[name] = path
        return value

    @field_validator("max_rejected", mode="before")
    @classmethod
    def _parse_limit(cls, value: Any) -> Any:
        """`"1%"` and `0.01` are a fraction, `5` and `"5"` are rows."""
        if isinstance(value, str):
            text = value.strip()
            with contextlib.suppress(ValueError):
                value = float(text[:-1]) / 100 if text.endswith("%") else int(text)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise ValueError(
                f"{value!r} is no limit; write a percentage such as '1%', a fraction of rows such "
                "as 0.01 or a number of rows"
            )
        if isinstance(value, float) and value > 1:
            raise ValueError(
                f"a fraction of rows is at most 1.0, not {value!r}; write a whole number for rows"
            )
        return value

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the file to read, once each: id, text, metadata."""
        first = () if self.id is None else (self.id,)
        return tuple(dict.fromkeys((*first, *self.text, *self.metadata)))

    @property
    def metadata_types(self) -> dict[str, str]:
        """The documents' metadata columns, in declared order; `a.b` of the file is `a_b` here."""
        return {column_name(path): split_unit(kind)[0] for path, kind in self.metadata.items()}

    @property
    def table_names(self) -> dict[str, str]:
        """What the columns of id and text are called in documents and tables."""
        return dict.fromkeys(self.text, "text") | ({self.id: "document_id"} if self.id else {})

    @property
    def content_columns(self) -> list[str]:
        """The columns of chunks that say what is embedded."""
        return [schemas.TEXT, *([schemas.IMAGE, schemas.URI] if self.has_images else [])]

    @property
    def place(self) -> str:
        """Where it reads, for people."""
        return self.kind

    @property
    def reader(self) -> str:
        """What makes texts of the files, with its version, where files can be read otherwise one
        day; it is part of the fingerprint."""
        return ""

    @property
    def missing_words(self) -> frozenset[str]:
        """The words of `missing` in lower case."""
        return frozenset(word.lower() for word in self.missing)

    @property
    def schema(self) -> pa.Schema:
        """The schema of every batch that `read` yields."""
        return schemas.documents_schema(self.metadata_types)

    def allows(self, rejected: int, total: int) -> bool:
        """Whether `rejected` of `total` records (documents and rejections) are within the limit."""
        limit = self.max_rejected
        return rejected <= (limit if isinstance(limit, int) else limit * total)

    @abstractmethod
    def files(self, home: Path) -> list[Input]:
        """All parts, once each, by name, with their stamps as they are now. `fetched` makes files
        of those that are objects in a bucket.


        Raises SourceError if one cannot be looked at, or if there is none.
        """

    def omissions(self, home: Path) -> list[str]:
        """What a run shall say of how `files` looks: a sentence each."""
        return []

    @property
    def is_joined(self) -> bool:
        """Whether its stamps depend on more than the parts themselves, so that only `files` tells
        them."""
        return False

    def joined(self, home: Path) -> list[Input]:
        """What else its stamps depend on, as it is now. Raises as `files`."""
        return []

    def files_joined_as(self, home: Path, record: Mapping[str, Stamp]) -> list[Input]:
        """As `files`, to be compared and not to be read, where all that is `joined` is as it was when
        the parts of `record` were read with these stamps: none of it is read again for them."""
        return self.files(home)

    @contextlib.contextmanager
    def reading(self, files: Iterator[SourceFile]) -> Iterator[Iterator[Reading]]:
        """Each file with what reads it as `read` does, in order, to be read before the next one is
        asked for. A source may begin with the next ones meanwhile."""
        yield ((file, functools.partial(self.read, file)) for file in files)

    def divide(self, file: SourceFile, part_bytes: int, log: ReadLog) -> list[SourceFile]:
        """The file in parts of about `part_bytes`, in order, which `read` takes one by one in place
        of it; what holds for all of them goes to the log. By default it stays whole.

        Raises SourceError as `read`.
        """
        return [file]

    @abstractmethod
    def read(self, file: SourceFile, log: ReadLog) -> Iterator[pa.RecordBatch]:
        """The documents of one part, in batches of `schema`.

        A batch has at most `columns.BATCH_ROWS` rows and about 16 MB. A record that cannot be a
        document goes to `log.reject`: records = documents + rejections. Raises SourceError for a
        part that cannot be read; the caller then drops the batches that came before.
        """

    def check_columns(
        self,
        where: str,
        missing: Set[str],
        columns: Iterable[str],
        log: ReadLog,
        hint: str = "",
    ) -> None:
        """Take note of the columns of the pipeline that a file does not have: its documents have no
        value there. Raises SourceError if the id, or all of the text, is among them."""
        names = [_shown(column) for column in columns]
        log.lacking = [column for column in self.columns if column in missing]
        log.columns = names[:SHOWN_COLUMNS] if log.lacking else []
        log.hint = hint
        if self.id is not None and self.id in missing:
            raise self.missing_column_error(where, self.id, names, hint)
        if missing >= {*self.text}:
            raise self.missing_column_error(where, self.text[0], names, hint)

    def missing_column_error(
        self, where: str, column: str, columns: Iterable[str], hint: str = ""
    ) -> SourceError:
        """The error for a `column` that is not among the `columns` of a file."""
        names = list(dict.fromkeys(map(_shown, columns)))
        more = ", …" if len(names) > SHOWN_COLUMNS else ""
        names_text = ", ".join(map(repr, names[:SHOWN_COLUMNS])) + more
        option = "text" if column in self.text else "metadata"
        remedy = "one of them" if names else "a column that is there"
        error = SourceError(
            f"{where}: column {column!r} is missing; found {names_text or 'none'}."
            f"{did_you_mean(column, names)} "
            f"Set source.{'id' if column == self.id else option} to {remedy}.{hint}"
        )
        error.columns = names
        return error


class FileSource(Source):
    """A source whose parts are files; each subclass reads one format."""

    is_portable: ClassVar[bool] = True
    usual_metadata: ClassVar[Mapping[str, str]] = {}  # of formats whose files all have the same

    path: Names

    @field_validator("path")
    @classmethod
    def _check_paths(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            if any("**" in part and part != "**" for part in entry.split("/")):
                raise ValueError(
                    f"in {entry!r}, '**' must stand alone between slashes, as in 'data/**/*.csv'"
                )
        return _names(value)

    @property
    def place(self) -> str:
        return ", ".join(self.path)

    def files(self, home: Path) -> list[Input]:
        """All files and objects that `path` names, once each, by name; relative entries start at
        `home`.

        Raises SourceError if an entry matches nothing or a folder cannot be listed.
        """
        return paths.find(self.path, home, self.suffixes)

    def omissions(self, home: Path) -> list[str]:
        """What walks through the folders of `path` leave out: a sentence for each reason."""
        return paths.omissions(self.path, home, self.suffixes)


def _names(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value or not all(value):
        raise ValueError("must name at least one, and none of them may be empty")
    return value


def _shown(name: str) -> str:
    """A column's name as an error and a state file can hold it."""
    shown = name.encode("utf-8", "backslashreplace").decode()
    return shown if len(shown) <= SHOWN_CHARACTERS else shown[:SHOWN_CHARACTERS] + "…"


def column_name(path: str) -> str:
    """A column's name among the documents: in filters a dot would mean a nested field."""
    return path.replace(".", "_")
