"""Datasets of Hugging Face: a folder that `Dataset.save_to_disk` wrote, or a dataset of the hub.

Nothing of a dataset is ever executed, and the library `datasets` is not needed: of a folder the Arrow
files are read that its `state.json` names, of the hub the Parquet files that the hub itself makes of
every dataset. A part is one such file, so that only files that differ are read again. A label that
is a number, with names in the dataset's own description, is its name.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import field_validator

from embedding_pipelines.errors import SourceError, did_you_mean
from embedding_pipelines.extras import need
from embedding_pipelines.sources.base import Input, ReadLog, Source, SourceFile
from embedding_pipelines.sources.columns import BATCH_ROWS, documents
from embedding_pipelines.sources.inputs import explain_errors
from embedding_pipelines.sources.parquet import column_at, shown

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

CONVERTED = "refs/convert/parquet"  # the branch with the hub's own Parquet of each dataset
HUB_NAME = re.compile(r"(?:[\w.-]+/)?[\w.-]+")
DAMAGE = "not a whole file of a dataset"


@dataclass(frozen=True)
class HubFile(SourceFile):
    """A file of the hub as it was listed, which is fetched when it is read; `path` is its place in
    the dataset."""

    commit: str


class HuggingFace(Source):
    """One document per row; `source_row` is the row's number in its file, from 1."""

    kind: Literal["huggingface"] = "huggingface"

    dataset: str  # a folder, from the home folder on, or a name of the hub such as org/name
    config: str = "default"  # of a dataset of the hub
    split: str = "train"
    revision: str = CONVERTED  # a branch, tag or commit of the hub with <config>/<split>/*.parquet

    @field_validator("dataset", "split", "config", "revision")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must not be empty")
        return value

    @property
    def place(self) -> str:
        return f"{self.dataset}, split {self.split}"

    def files(self, home: Path) -> list[Input]:
        """The files of the split, by name. Those of a folder have the dataset's fingerprint and their
        size and times for a stamp, those of the hub the digest of their content; only `read` fetches
        these, into the hub's own cache, where they are not yet.

        Raises SourceError if there is no such dataset, configuration or split, or if the hub does
        not answer.
        """
        folder = home / Path(self.dataset).expanduser()
        if folder.is_dir():
            return self._of_folder(folder)
        if not HUB_NAME.fullmatch(self.dataset):
            raise SourceError(
                f"source.dataset {self.dataset!r}: there is no folder {str(folder)!r}, and the hub has "
                "no such names. Correct it."
            )
        return self._of_hub()

    def read(self, file: SourceFile, log: ReadLog) -> Iterator[pa.RecordBatch]:
        """See Source.read. Raises SourceError for a damaged file or a column that is no text, or if
        the hub does not give a file."""
        if isinstance(file, HubFile):
            file = self._fetch(file)
        with explain_errors(file, DAMAGE), contextlib.ExitStack() as stack:
            schema, batches = _open(file, stack)
            empty = schema.empty_table()
            lacking = {path for path in self.columns if not _has(empty, path)}
            self.check_columns(file.name, lacking, schema.names, log)
            labels, first = _labels(schema), 1
            for batch in batches:
                rows = pa.array(range(first, first + batch.num_rows), pa.int64())
                first += batch.num_rows
                values = {
                    path: pa.nulls(batch.num_rows)
                    if path in lacking
                    else _as_labels(column_at(batch, path), labels.get(path))
                    for path in self.columns
                }

                def raw(at: int, batch: pa.RecordBatch = batch) -> bytes:
                    row = batch.slice(at, 1)
                    cells = {name: shown(row.column(name)[0]) for name in batch.schema.names}
                    return json.dumps(cells, default=repr).encode()

                yield from documents(self, file, values, rows, raw, log)

    def _of_folder(self, folder: Path) -> list[Input]:
        splits = _json(folder / "dataset_dict.json")
        if splits is not None:
            names = splits.get("splits", [])
            if self.split not in names:
                raise SourceError(
                    f"{self.dataset}: there is no split {self.split!r}; there are "
                    f"{', '.join(names)}.{did_you_mean(self.split, names)} Set source.split to one."
                )
            folder = folder / self.split
        state = _json(folder / "state.json")
        if state is None:
            raise SourceError(
                f"{self.dataset}: the folder has no state.json, so `Dataset.save_to_disk` did not "
                "write it. Of Parquet, JSON or CSV files name the folder in a source of their kind."
            )
        try:
            names = [Path(entry["filename"]).name for entry in state["_data_files"]]
            fingerprint = str(state["_fingerprint"])
        except (KeyError, TypeError):
            raise SourceError(
                f"{folder / 'state.json'}: names no files of a dataset. Save the dataset again."
            ) from None
        parts: list[Input] = []
        for path in (folder / name for name in names):
            try:
                status = path.stat()
            except OSError as error:
                raise SourceError(
                    f"{self.dataset}: {path.name} cannot be read ({error.strerror}), and state.json "
                    "names it. Save the dataset again."
                ) from error
            times = (status.st_mtime_ns, status.st_ctime_ns)
            stamp = (status.st_size, *times, fingerprint)
            name = f"{self.dataset.rstrip('/')}/{path.relative_to(folder.parent).as_posix()}"
            parts.append(SourceFile(name, status.st_size, stamp, path))
        return sorted(parts, key=lambda part: part.name)

    def _of_hub(self) -> list[Input]:
        hub = need("huggingface_hub", "huggingface")
        with self._explained():
            commit = hub.HfApi().dataset_info(self.dataset, revision=self.revision).sha
            tree = hub.HfApi().list_repo_tree(
                self.dataset, recursive=True, revision=commit, repo_type="dataset"
            )
            entries = sorted((each for each in tree if hasattr(each, "size")), key=lambda e: e.path)
        parts = [each for each in entries if self._is_of_split(each.path)]
        if not parts:
            raise self._nothing([each.path for each in entries])
        return [self._listed(each, commit) for each in parts]

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors of the hub as a SourceError."""
        import httpx2

        try:
            yield
        except need("huggingface_hub.errors", "huggingface").HFValidationError as error:
            raise SourceError(f"source.dataset {self.dataset!r}: {error} Correct it.") from None
        except (OSError, httpx2.HTTPError) as error:  # which quote addresses
            raise SourceError(
                f"source.dataset {self.dataset!r}: the Hugging Face hub does not give its revision "
                f"{self.revision!r} ({type(error).__name__}). Correct the name, or set HF_TOKEN for "
                "a dataset that is not public; else try again later."
            ) from None

    def _is_of_split(self, path: str) -> bool:
        config, _, rest = path.partition("/")
        split, _, name = rest.partition("/")
        return (config, split) == (self.config, self.split) and name.endswith(".parquet")

    def _nothing(self, paths: list[str]) -> SourceError:
        pairs = sorted({"/".join(path.split("/")[:2]) for path in paths if path.count("/") >= 2})
        return SourceError(
            f"{self.dataset}: there is no Parquet of configuration {self.config!r} and split "
            f"{self.split!r}; there is {', '.join(pairs) or 'none'}. Set source.config and "
            "source.split, and source.revision for Parquet elsewhere."
        )

    def _listed(self, entry: "RepoFile", commit: str) -> HubFile:
        tag = entry.lfs.sha256 if entry.lfs else entry.blob_id
        name, stamp = f"{self.dataset}/{entry.path}", (entry.size, str(tag))
        return HubFile(name, entry.size, stamp, Path(entry.path), commit)

    def _fetch(self, file: HubFile) -> SourceFile:
        """A file of one commit, from the hub's cache if it is there: its path is a link to content
        that never changes."""
        download = need("huggingface_hub", "huggingface").hf_hub_download
        name = file.path.as_posix()
        with self._explained():
            path = download(self.dataset, name, repo_type="dataset", revision=file.commit)
        return SourceFile(file.name, file.size_bytes, file.stamp, Path(path))


def _open(
    file: SourceFile, stack: contextlib.ExitStack
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Schema and rows of a file of Arrow's or of Parquet."""
    if file.path.suffix == ".parquet":
        table = stack.enter_context(pq.ParquetFile(file.path, pre_buffer=False))
        return table.schema_arrow, table.iter_batches(BATCH_ROWS, use_threads=False)
    stream = stack.enter_context(pa.ipc.open_stream(stack.enter_context(pa.OSFile(str(file.path)))))
    return stream.schema, iter(stream)


def _has(empty: pa.Table, path: str) -> bool:
    try:
        column_at(empty, path)
    except (KeyError, pa.ArrowException):
        return False
    return True


def _labels(schema: pa.Schema) -> dict[str, list[str]]:
    """The names of labels that stand as numbers, by column."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = about["info"]["features"].items()
        return {
            name: list(map(str, feature["names"]))
            for name, feature in features
            if feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, AttributeError, TypeError):
        return {}


def _as_labels(values: pa.Array, labels: list[str] | None) -> pa.Array:
    """Numbers as their labels; -1 is a label that nobody has given."""
    if labels is None or not pa.types.is_integer(values.type):
        return values
    names = [None if at is None or not 0 <= at < len(labels) else at for at in values.to_pylist()]
    return pa.array([None if at is None else labels[at] for at in names], pa.string())


def _json(path: Path) -> dict[str, Any] | None:
    """Raises SourceError for a file that is damaged."""
    try:
        value = json.loads(path.read_text("utf-8"))
        return value if isinstance(value, dict) else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read ({error}). Save the dataset again.") from error
