"""A live table as files that training loops and viewers read.

A folder holds one export: its files and `export.json`, which says what they are of. It is made
beside its place and put there once it is whole.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedding_pipelines.access import Principals
from embedding_pipelines.errors import ConfigError, StoreError
from embedding_pipelines.explore.table import Kind, LiveTable
from embedding_pipelines.extras import need
from embedding_pipelines.files import temporary_folder, write_json
from embedding_pipelines.progress import Progress, Silent
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.storage.warehouse import write_table
from embedding_pipelines.vectors import to_matrix

Format = Literal["parquet", "npy", "torch", "atlas"]
ABOUT = "export.json"


@dataclass(frozen=True)
class Export:
    """What was written, and what it is of."""

    pipeline: str
    release: int
    format: Format
    vectors: Kind
    space: str
    space_id: str
    rows: int
    dimensions: int
    files: list[str]
    folder: str


def export(
    home: Path,
    name: str,
    format: Format,
    folder: Path | None = None,
    vectors: Kind = "exact",
    progress: Progress | None = None,
    principals: Principals = None,
) -> Export:
    """Write the live table of a pipeline to a folder, by default exports/NAME-FORMAT in the
    warehouse, in place of an export that is there.

    - parquet: `table.parquet`, with ids, offsets, text, metadata and `vector` float32[d].
    - npy: `vectors.npy` float32[n, d] and `rows.parquet` with everything else, row by row.
    - torch: `vectors.pt`, for `torch.load(…, weights_only=True, mmap=True)`: a dict of `ids` (of
      chunks) and `vectors`, and `rows.parquet` with everything else.
    - atlas: `atlas.parquet` for embedding-atlas and Nomic Atlas: id, text, x and y of the report's
      map, `vector`, document_id, metadata.

    Rows are those that `principals` may see, where the pipeline has permissions.

    Rows are streamed; of torch and atlas the ids of all rows are in memory too. Raises ReleaseError
    without a release, ConfigError for a folder that holds something else or a package that is
    missing, StoreError if a vector is not in the embedding cache, PermissionsError as a search does.
    """
    table, progress = LiveTable(home, name, principals), progress or Silent()
    target = folder or table.warehouse.root / "exports" / f"{name}-{format}"
    is_free = not target.exists() or (target.is_dir() and not any(target.iterdir()))
    if not is_free and not (target / ABOUT).is_file():
        raise ConfigError(f"{target} is there and is no export. Name a folder that is not there.")
    with temporary_folder(target.parent, f".{target.name}.") as beside:
        draft, before = beside / "draft", beside / "before"
        draft.mkdir()
        rows = WRITERS[format](table, vectors, draft, progress)
        if rows != table.rows:
            raise StoreError(
                f"The table of {name!r} holds {rows:,} rows, its release {table.rows:,}. "
                f"Run `embedding-pipelines run {name}`: it makes a new release."
            )
        about = Export(
            name,
            table.release.number,
            format,
            vectors,
            str(table.space),
            table.space.id,
            rows,
            table.space.dimensions,
            sorted(path.name for path in draft.iterdir()),
            str(target),
        )
        write_json(draft / ABOUT, asdict(about))
        if target.exists():
            target.replace(before)
        try:
            draft.replace(target)
        except OSError:
            if before.exists():
                before.replace(target)
            raise
    return about


def _counted(table: LiveTable, kind: Kind, progress: Progress) -> Iterator[pa.RecordBatch]:
    """All rows with their vectors."""
    count = 0
    for batch in table.read(kind):
        yield batch
        count += batch.num_rows
        progress.update("export", count, table.rows, "rows")


def _write_parquet(table: LiveTable, kind: Kind, folder: Path, progress: Progress) -> int:
    rows = _counted(table, kind, progress)
    return write_table(folder / "table.parquet", table.schema(kind), rows)


def _write_npy(table: LiveTable, kind: Kind, folder: Path, progress: Progress) -> int:
    shape = (table.rows, table.space.dimensions)
    with (folder / "vectors.npy").open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        return _write_apart(table, kind, folder, progress, file)


def _write_torch(table: LiveTable, kind: Kind, folder: Path, progress: Progress) -> int:
    torch = need("torch", "local")
    numbers = folder / ".numbers"
    with numbers.open("wb") as file:
        count = _write_apart(table, kind, folder, progress, file)
    ids = pq.read_table(folder / "rows.parquet", columns=["chunk_id"])["chunk_id"].to_pylist()
    shape = (count, table.space.dimensions)
    vectors = torch.empty(shape)
    if count:  # mapped, so that they are never in memory at once
        size = count * table.space.dimensions
        vectors = torch.from_file(str(numbers), size=size, dtype=torch.float32).reshape(shape)
    torch.save({"ids": ids, "vectors": vectors}, folder / "vectors.pt")
    del vectors
    numbers.unlink()
    return count


def _write_apart(
    table: LiveTable, kind: Kind, folder: Path, progress: Progress, file: BinaryIO
) -> int:
    """The vectors to a file as float32, row after row, everything else to `rows.parquet`."""
    schema = table.schema(None)

    def rows() -> Iterator[pa.RecordBatch]:
        for batch in _counted(table, kind, progress):
            file.write(np.ascontiguousarray(to_matrix(batch[VECTOR])).tobytes())
            yield batch.select(schema.names)

    return write_table(folder / "rows.parquet", schema, rows())


def _write_atlas(table: LiveTable, kind: Kind, folder: Path, progress: Progress) -> int:
    from embedding_pipelines.report.layout import place_beside
    from embedding_pipelines.report.map import place_points, point_id, read_points

    points = read_points(table.table, table.release, table.codec, progress)
    layout = place_points(table.folder, table.release, points, progress)
    places = {name: row for row, name in enumerate(layout.ids)}
    own = {"id": "chunk_id", "document_id": "document_id", "text": "text"}
    columns = own | {
        f"metadata_{name}" if name in ("id", "x", "y") else name: name
        for name in table.release.spec.metadata_types
    }
    source = table.schema(kind)
    fields = {name: source.field(column).type for name, column in columns.items()}
    fields |= {"x": pa.float32(), "y": pa.float32(), VECTOR: source.field(VECTOR).type}
    schema = pa.schema(fields, metadata=source.metadata)

    def rows() -> Iterator[pa.RecordBatch]:
        for batch in _counted(table, kind, progress):
            pairs = zip(batch["chunk_id"].to_pylist(), batch["text"].to_pylist(), strict=True)
            numbers = np.array([places.get(point_id(*pair), -1) for pair in pairs], np.int64)
            xy, rest = layout.xy[numbers], np.flatnonzero(numbers < 0)
            if len(rest):
                xy[rest] = place_beside(to_matrix(batch[VECTOR])[rest], points.vectors, layout.xy)
            arrays = [*(batch[column] for column in columns.values()), *xy.T, batch[VECTOR]]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    return write_table(folder / "atlas.parquet", schema, rows())


WRITERS: dict[Format, Callable[[LiveTable, Kind, Path, Progress], int]] = {
    "parquet": _write_parquet,
    "npy": _write_npy,
    "torch": _write_torch,
    "atlas": _write_atlas,
}
