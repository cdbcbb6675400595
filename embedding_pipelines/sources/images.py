"""Image files: a document each, with the digest of its pixels, and its caption from a table beside them.

Each new image is decoded once, in a process of its own ahead of the steps, and nothing keeps pixels:
what was damaged to end a decoder ends that process, and is a rejected row. The caption's digest is
part of an image's stamp, so another caption has just its image read again.
"""

import contextlib
import json
import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal, Self, cast

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from embedding_pipelines import images
from embedding_pipelines.errors import SourceError, counted, fault_in_words
from embedding_pipelines.plugins import choices
from embedding_pipelines.pool import Pool, ProcessDied
from embedding_pipelines.schemas import digest
from embedding_pipelines.sources.base import (
    FileSource,
    Input,
    Names,
    Reading,
    ReadLog,
    Rejection,
    Source,
    SourceFile,
    Stamp,
    column_name,
    fetched,
)
from embedding_pipelines.sources.inputs import explain_errors

TABLES = ("csv", "json", "jsonl", "parquet")  # kinds of source that read captions
OWN = {  # the columns of every image; `image` is null in documents that programs push
    "image": "string",
    "file": "string",
    "format": "string",
    "width": "int",
    "height": "int",
    "uri": "string",
    "perceptual": "string",
}
DIGESTS = ("image", "perceptual")
AHEAD = 32  # images that are decoded, or wait for it, while the first is awaited
AHEAD_BYTES = 64 * 2**20  # of their files, unless one is larger
SHOWN = 3  # names in a note
_VERSION = 1  # raise it when the same file gives other documents

_Waiting = tuple[SourceFile, int, "Future[images.Look] | str"]  # with its bytes, or why it is none


@dataclass(frozen=True)
class Caption:
    """What a table of captions says of one image."""

    text: str
    metadata: dict[str, Any]
    digest: str


@dataclass
class Captioned:
    """The rows of a table of captions, by what they call their image."""

    rows: dict[str, Caption]
    rejected: list[Rejection] = field(default_factory=list)
    used: Counter[str] = field(default_factory=Counter)

    def of(self, below: str) -> Caption | None:
        """Of the image at a path below the source's folder: the row of that path, else of its
        name."""
        for name in (below, below.rpartition("/")[2]):
            if name in self.rows:
                self.used[name] += 1
                return self.rows[name]
        return None


@contextlib.contextmanager
def _named_as_captions() -> Iterator[None]:
    """Errors of the table name options as a pipeline file has them, where it has them."""
    try:
        yield
    except SourceError as error:
        text = str(error)
        for option, own in {"id": "file", **dict.fromkeys(("path", "text", "metadata"))}.items():
            text = text.replace(f"source.{option}", f"source.captions.{own or option}")
        if re.search(r"source\.(?!captions)", text):
            text += " Captions have no such option: correct the table itself, in UTF-8."
        raise type(error)(text) from error


class Captions(BaseModel):
    """A table with a row, or more, for each image. `file`: the column with the image's name, or its
    path below the source's folder; `text` and `metadata` as in other sources."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    file: str = "file"
    text: Names = ()
    metadata: dict[str, str] = {}

    @field_validator("metadata", mode="before")
    @classmethod
    def _default_to_strings(cls, value: Any) -> Any:
        return dict.fromkeys(value, "string") if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.table()
        return self

    def table(self) -> FileSource:
        """What reads the table. Raises ValueError for options that are wrong."""
        classes = choices("sources", Source)
        suffix_kinds = [
            kind for kind in TABLES if self.path.lower().endswith(_suffixes(classes[kind]))
        ]
        if not suffix_kinds:
            raise ValueError(
                f"path: the kind of {self.path!r} is not clear from its ending; name a file of CSV, "
                "JSON, JSON Lines or Parquet"
            )
        (kind,) = suffix_kinds[:1]
        options = {"kind": kind, "path": self.path, "id": self.file, "metadata": self.metadata}
        options["text"] = self.text or (self.file,)
        try:
            return cast(FileSource, classes[kind].model_validate(options))
        except ValidationError as error:
            (first, *_) = error.errors()
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"{place}: {fault_in_words(first)}") from None

    @_named_as_captions()
    def files(self, home: Path) -> list[Input]:
        """See FileSource.files."""
        return self.table().files(home)

    @_named_as_captions()
    def read(self, home: Path) -> Captioned:
        """All rows. Several of one image give one text, a line for each, and the metadata of the
        first. Raises SourceError, also for a column that no file has."""
        table, rejected = self.table(), list[Rejection]()
        logs: dict[str, ReadLog] = {}
        texts: dict[str, list[str]] = {}
        columns: dict[str, dict[str, Any]] = {}
        with fetched(table.files(home)) as files:
            for file in files:
                log = logs[file.name] = ReadLog(rejected.append)
                for batch in table.read(file, log):
                    for row in batch.to_pylist():
                        name = plain_path(row["document_id"])
                        texts.setdefault(name, []).append(row["text"] if self.text else "")
                        own = {key: row[key] for key in table.metadata_types}
                        columns.setdefault(name, own)
        for column in table.columns:
            if all(column in log.lacking for log in logs.values()):
                name, log = next(iter(logs.items()))
                raise table.missing_column_error(name, column, log.columns)
        if not table.allows(len(rejected), len(rejected) + sum(map(len, texts.values()))):
            first = rejected[0]
            raise SourceError(
                f"{first.file}:{first.row}: {first.reason}. {len(rejected):,} rows of the captions "
                "cannot be read, more than 1%. Correct them."
            )
        rows = {}
        for name, lines in texts.items():
            text = "\n".join(filter(None, lines))
            canonical = json.dumps([text, columns[name]], sort_keys=True, default=str)
            rows[name] = Caption(text, columns[name], digest(canonical.encode()).hex())
        return Captioned(rows, rejected)


class Images(FileSource):
    """One document per image. Its id is its path below the folder that `path` names; its text is its
    caption, else empty. Its columns are those of OWN, and the captions' metadata.

    A file is read by its content, whatever its name says; one that is broken, or beyond the limits
    of `images.py`, is rejected.
    """

    kind: Literal["images"] = "images"
    unit: ClassVar[str] = "image"
    has_images: ClassVar[bool] = True
    is_portable: ClassVar[bool] = False  # decoding has all processors of one machine
    own_columns: ClassVar[frozenset[str]] = frozenset(OWN)
    suffixes: ClassVar[tuple[str, ...]] = (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".gif"),
        *(".tif", ".tiff", ".pcx", ".avif", ".heic", ".heif"),
    )

    captions: Captions | None = None

    @model_validator(mode="before")
    @classmethod
    def _own_columns(cls, values: Any) -> Any:
        """Sets `metadata`, so that all that reads the options of a source knows its columns."""
        if not isinstance(values, dict):
            return values
        captions = values.get("captions")
        columns = captions.get("metadata", {}) if isinstance(captions, dict) else {}
        if isinstance(captions, Captions):
            columns = captions.metadata
        names = dict.fromkeys(columns, "string") if isinstance(columns, list | tuple) else columns
        own = OWN | (names if isinstance(names, dict) else {})
        if taken := [path for path in names if column_name(str(path)) in OWN]:
            raise ValueError(
                f"captions.metadata names {taken[0]!r}, a column that every image has; rename it in "
                "the table, or leave it out"
            )
        for option in ("id", "text"):
            if values.get(option) not in (None, ("text",), ["text"]):
                raise ValueError(
                    f"{option}: an image's id is its path and its text its caption; leave {option} "
                    "out, and name the captions' columns in source.captions"
                )
        if values.get("metadata") not in (None, own):
            raise ValueError(
                "metadata: name the columns of the captions in source.captions.metadata; those of "
                f"an image ({', '.join(OWN)}) are there anyway"
            )
        return {**values, "metadata": own}

    @property
    def reader(self) -> str:
        return f"images/{_VERSION};{images.recipe()}"

    @property
    def is_joined(self) -> bool:
        return self.captions is not None

    def files(self, home: Path) -> list[Input]:
        """See FileSource.files. With captions, each image knows its own."""
        return self._captioned(home, super().files(home))[0]

    def joined(self, home: Path) -> list[Input]:
        """The files of the captions."""
        return self.captions.files(home) if self.captions else []

    def files_joined_as(self, home: Path, record: Mapping[str, Stamp]) -> list[Input]:
        """See Source.files_joined_as. An image that is not on record needs its caption."""
        inputs_on_record: list[Input] = []
        inputs = super().files(home)
        for each in inputs:
            stamp, own = record.get(each.name, ()), len(each.stamp)
            if stamp[:own] != each.stamp:
                return self._captioned(home, inputs)[0]
            inputs_on_record.append(replace(each, stamp=stamp))
        return inputs_on_record

    def omissions(self, home: Path) -> list[str]:
        """What walks leave out, and which captions and images do not belong together."""
        inputs, captioned = self._captioned(home, super().files(home))
        if self.captions is None or captioned is None:
            return super().omissions(home)
        from embedding_pipelines.sources import paths

        table = [file.name for file in self.joined(home)]
        notes = paths.omissions(self.path, home, self.suffixes, table)
        path = self.captions.path
        if captioned.rejected:
            first = captioned.rejected[0]
            notes.append(
                f"{path}: {counted(len(captioned.rejected), 'row')} cannot be read; the first is "
                f"line {first.row}: {first.reason}"
            )
        if unused := [name for name in captioned.rows if name not in captioned.used]:
            notes.append(f"{path}: {counted(len(unused), 'name')} of no image{_some(unused)}")
        if bare := [each.name for each in inputs if each.joined is None]:
            notes.append(f"{path}: no row of {len(bare):,} of {len(inputs):,} images{_some(bare)}")
        return notes

    @contextlib.contextmanager
    def reading(self, files: Iterator[SourceFile]) -> Iterator[Iterator[Reading]]:
        """See Source.reading: the next images are decoded meanwhile."""
        with Pool() as pool:
            yield self._decoded(files, pool)

    def read(self, file: SourceFile, log: ReadLog) -> Iterator[pa.RecordBatch]:
        """See Source.read."""
        with self.reading(iter([file])) as readings:
            for _, read in readings:
                yield from read(log)

    def _captioned(self, home: Path, inputs: list[Input]) -> tuple[list[Input], Captioned | None]:
        if self.captions is None:
            return inputs, None
        captioned = self.captions.read(home)
        joined: list[Input] = []
        for each in inputs:
            caption = captioned.of(each.below)
            stamp = (*each.stamp, caption.digest if caption else "")
            joined.append(replace(each, stamp=stamp, joined=caption))
        return joined, captioned

    def _decoded(self, files: Iterator[SourceFile], pool: Pool) -> Iterator[Reading]:
        waiting: deque[_Waiting] = deque()
        for file in files:
            waiting.append(_begin(file, pool))  # at once: a copy of an object is soon gone
            while len(waiting) >= AHEAD or sum(size for _, size, _ in waiting) > AHEAD_BYTES:
                yield self._reading(waiting.popleft())
        while waiting:
            yield self._reading(waiting.popleft())

    def _reading(self, waiting: _Waiting) -> Reading:
        file, _, outcome = waiting
        return file, partial(self._document, file, outcome)

    def _document(
        self, file: SourceFile, outcome: "Future[images.Look] | str", log: ReadLog
    ) -> Iterator[pa.RecordBatch]:
        try:
            if isinstance(outcome, str):
                raise images.ImageError(outcome)
            look = outcome.result()
        except (images.ImageError, ProcessDied, MemoryError) as error:
            log.reject(Rejection(file.name, 1, str(error) or "it takes too much memory", b""))
            return
        except OSError as error:  # of no image: the system starts no more processes
            raise SourceError(
                f"No process can be started to decode {file.name}: {error.strerror or error}. Free what "
                "it lacks, then run again."
            ) from error
        caption = cast(Caption | None, file.joined)
        row: dict[str, Any] = {
            "document_id": file.below,
            "text": caption.text if caption else "",
            "source_file": file.name,
            "source_row": 1,
            "image": look.digest,
            "file": PurePosixPath(file.below).name,
            "format": look.format,
            "width": look.width,
            "height": look.height,
            "uri": file.name,
            "perceptual": look.perceptual,
            **(caption.metadata if caption else {}),
        }
        yield pa.RecordBatch.from_pylist([row], self.schema)


def _begin(file: SourceFile, pool: Pool) -> _Waiting:
    if file.size_bytes > images.MAX_BYTES:
        return file, 0, images.too_large(file.size_bytes)
    with explain_errors(file, "cannot be read"):
        data = file.path.read_bytes()
    return file, len(data), pool.submit(images.look, data)


def plain_path(name: str) -> str:
    """A path as images have it: with slashes, and without a `./` before it."""
    return name.strip().replace("\\", "/").removeprefix("./")


def _suffixes(cls: Any) -> tuple[str, ...]:
    return cast(tuple[str, ...], cls.suffixes)


def _some(names: list[str]) -> str:
    return f", such as {', '.join(map(repr, names[:SHOWN]))}"
