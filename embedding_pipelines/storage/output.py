"""What a pipeline delivers to others: the rows of its live release as Parquet files in a folder, or
below a prefix of a bucket, and `index.json`, which names them.

A file is named by its content and never replaced; the index is written when all files that it names
are there. So a reader who follows an index finds whole files of one release. Those of the release
before stay for readers that are under way.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from embedding_pipelines.errors import BucketError, ConfigError
from embedding_pipelines.objects import Bucket, Object, is_uri
from embedding_pipelines.storage.bucket import open_uri
from embedding_pipelines.storage.warehouse import file_digest

INDEX = "index.json"
FORMAT = 1
NAME = re.compile(r"b\d+-[0-9a-f]{16}\.parquet")  # of the files; all others are somebody else's


@dataclass(frozen=True)
class OutputFile:
    """The rows of one partition."""

    name: str
    rows: int
    size_bytes: int
    inputs: str  # digest of what it was made from


@dataclass(frozen=True)
class Delivery:
    """The rows of one release; `files` by partition, without those that have no rows."""

    release: int
    released_at: str  # ISO 8601, UTC
    model: str
    dimensions: int
    space: str  # id of the space of the vectors
    rows: int
    files: Mapping[str, OutputFile]

    @classmethod
    def parse(cls, values: Any) -> "Delivery":
        """Raises TypeError or KeyError for what is none."""
        files = {name: OutputFile(**entry) for name, entry in values["files"].items()}
        return cls(**{**values, "files": files})


@dataclass(frozen=True)
class Index:
    """What `index.json` says."""

    pipeline: str
    current: Delivery
    previous: Delivery | None  # of the release before, for readers that are under way

    @property
    def names(self) -> set[str]:
        """The files that it names."""
        deliveries = [self.current, *([self.previous] if self.previous else [])]
        return {file.name for delivery in deliveries for file in delivery.files.values()}


class Output:
    """The place that `output` in a pipeline file names; every method raises BucketError where the
    store refuses, or does not answer."""

    def __init__(self, uri: str, opened: tuple[Bucket, str]) -> None:
        self.uri = uri
        self._bucket, self._prefix = opened

    def index(self, pipeline: str) -> Index | None:
        """None if nothing was ever delivered. Raises ConfigError for an index of another pipeline,
        or of somebody else."""
        content = self._bucket.read(self._prefix + INDEX)
        if content is None:
            return None
        try:
            values = json.loads(content)
            owner, previous = str(values.pop("pipeline")), values.pop("previous")
            values.pop("format")
            index = Index(
                owner, Delivery.parse(values), Delivery.parse(previous) if previous else None
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ConfigError(
                f"{self.uri}: its {INDEX} is none that a pipeline writes. Name another folder in "
                "`output`, or move that file away."
            ) from None
        if owner != pipeline:
            raise ConfigError(
                f"{self.uri}: it holds the output of pipeline {owner!r}. Name a folder of its own "
                f"in the `output` of {pipeline!r}."
            )
        return index

    def write_index(self, index: Index) -> str:
        """Replace it in one request; its ETag."""
        values = {
            "format": FORMAT,
            "pipeline": index.pipeline,
            **asdict(index.current),
            "previous": asdict(index.previous) if index.previous else None,
        }
        content = json.dumps(values, ensure_ascii=False, indent=1).encode()
        return self._bucket.replace(self._prefix + INDEX, content)

    def objects(self) -> dict[str, Object]:
        """What is directly in the folder, by name: one listing."""
        _, listed = self._bucket.list_folder(self._prefix.rstrip("/"))
        return {entry.key.rpartition("/")[2]: entry for entry in listed}

    def put(self, partition: str, path: Path, rows: int, inputs: str) -> OutputFile:
        """Create the file of a partition, unless one of the same content is there."""
        size = path.stat().st_size
        file = OutputFile(f"{partition}-{file_digest(path)[:16]}.parquet", rows, size, inputs)
        key = self._prefix + file.name
        if not self._bucket.create(key, path):
            there = self._bucket.find(key)
            if there is None or there.size_bytes != size:  # cut short, by a power cut say
                self._bucket.delete([key])
                self._bucket.create(key, path)
        return file

    def fetch(self, file: OutputFile, path: Path) -> None:
        """Write a file's content to a path. Raises BucketError if it is gone."""
        with path.open("wb") as target:
            if not self._bucket.fetch(self._prefix + file.name, target):
                raise BucketError(
                    f"{self._bucket.uri(self._prefix + file.name)} is gone. Run the pipeline, which "
                    "writes it anew, then try again."
                )

    def delete(self) -> None:
        """Delete the index, then the files."""
        self._bucket.delete([self._prefix + INDEX])
        self.delete_unnamed(None)

    def delete_unnamed(self, index: Index | None) -> int:
        """Delete the files that the index does not name; how many. What others have put there is
        not touched."""
        names = index.names if index else set()
        gone = [
            entry.key
            for name, entry in self.objects().items()
            if NAME.fullmatch(name) and name not in names
        ]
        self._bucket.delete(gone)
        return len(gone)


def open_output(uri: str, home: Path) -> Output:
    """A folder is made if need be. Raises BucketError without credentials, ConfigError without the
    extra."""
    place = absolute(uri, home)
    return Output(uri, open_uri(place if is_uri(place) else Path(place).as_uri()))


def absolute(place: str, home: Path) -> str:
    """A folder or URI as it can be compared with others: from the root, without a slash at the
    end."""
    if is_uri(place):
        return place.rstrip("/")
    return Path(os.path.abspath(home / os.path.expanduser(place))).as_posix()


def is_below(place: str, folder: str) -> bool:
    """Whether one of two absolute places is the other, or in it."""
    return f"{place}/".startswith(f"{folder.rstrip('/')}/")
