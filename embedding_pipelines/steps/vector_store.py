"""vector_store: the searchable table is brought up to date by row differences, then its index.

The table belongs to one space and one set of columns; a changed model, codec or column makes a new
table beside the old one. What was last written is remembered with the table's version: if the two
disagree (a run died in between), every partition is compared again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from embedding_pipelines.compression.base import CodecChain, code_width
from embedding_pipelines.errors import StoreError
from embedding_pipelines.files import read_json, write_json
from embedding_pipelines.progress import StepReport
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import RESCORING_VECTOR, VECTOR, digest, table_schema
from embedding_pipelines.space import Space
from embedding_pipelines.spec.pipeline import PipelineSpec, fingerprint
from embedding_pipelines.steps.base import Step
from embedding_pipelines.steps.codec import codec_path, load_codec
from embedding_pipelines.steps.embeddings import rejected_chunks
from embedding_pipelines.storage.warehouse import parse_state
from embedding_pipelines.stores.base import NUMBER_TYPES, Store, Table
from embedding_pipelines.vectors import Vectors, to_column, to_matrix


@dataclass
class TableState:
    """What the last completed update left."""

    table: str
    version: int
    partitions: dict[str, str]  # partition -> digests of the shards it was made from
    trained_rows: int  # how many the index was trained on, 0 without one
    store: str  # the store's options that decide what the table is
    rows: int
    trained_before: dict[str, int] = field(
        default_factory=dict
    )  # the same of the pipeline's other tables, by name


@dataclass
class Difference:
    """What one partition's rows in the table lack."""

    remove: list[str] = field(default_factory=list)
    add: dict[str, list[bool]] = field(default_factory=dict)  # partition -> per row of its shard


class VectorStore(Step):
    name = "vector_store"
    inputs = ("chunks", "embeddings", "codec")
    description = "The searchable table, brought up to date by row differences, and its index."
    sentence = "{rows}: {added:,} added, {removed:,} removed"
    row_statistic = "rows"
    identity = ("table", "version")
    lineage: ClassVar[Mapping[str, str]] = {"partition": "document_id"}

    def configuration(self, spec: PipelineSpec) -> str:
        return fingerprint(spec.store.layout)

    def columns(self, spec: PipelineSpec) -> pa.Schema:
        return table_schema(spec.source.metadata_types, pa.list_(pa.null()), "")

    def kinds(self, spec: PipelineSpec) -> set[str]:
        return {spec.store.kind}

    def current(self, run: Run, partition: str | None = None) -> StepReport | None:
        if codec_path(run) is None:
            return None
        codec, state = load_codec(run), table_state(run)
        table, name = open_table(run, codec)
        if (
            state is None
            or not _intact(run, state, name, table.version)
            or state.partitions != _shards(run)
        ):
            return None
        return StepReport(self.name, False, _statistics(table, state, codec, 0, 0))

    def work(
        self, run: Run, partitions: Sequence[str], options: dict[str, Any] | None = None
    ) -> Iterator[StepReport]:
        yield self.current(run) or update_vector_store(run)


def update_vector_store(run: Run) -> StepReport:
    """Make the table hold just the chunks of all partitions, with their vectors encoded.

    Raises StoreError if chunks and embeddings of a partition do not belong together.
    """
    codec = load_codec(run)
    table, name = open_table(run, codec)
    state = table_state(run)
    shards = _shards(run)
    intact = _intact(run, state, name, table.version)
    done = state.partitions if state is not None and intact else {}
    stale = [partition for partition in shards if done.get(partition) != shards[partition]]

    difference = _difference(run, table, stale)
    added = sum(sum(rows) for rows in difference.add.values())
    schema = _schema(run, codec)
    run.progress.update("vector_store", 0, added, "rows")
    before = {**state.trained_before, state.table: state.trained_rows} if state is not None else {}
    trained = before.pop(name, 0)
    if table.version is None:
        _forget_releases(run, name)
        trained = 0
    if difference.remove or added or not intact:
        table.apply(schema, difference.remove, _rows(run, difference, codec, schema, added))
        trained = table.index(codec.metric, trained)
    version = table.version
    assert version is not None
    kept = run.spec.store.names(run.warehouse.tables)
    before = {other: rows for other, rows in before.items() if other in kept}
    state = TableState(name, version, shards, trained, run.spec.store.layout, table.rows(), before)
    write_json(run.folder.table_state, asdict(state))
    return StepReport(
        "vector_store", True, _statistics(table, state, codec, added, len(difference.remove))
    )


def open_table(run: Run, codec: CodecChain) -> tuple[Table, str]:
    """The table that the pipeline as it is now configured belongs in, and its name."""
    schema = _schema(run, codec)
    content = digest(stored_space(run, codec).id.encode(), str(schema).encode()).hex()
    name = f"{run.spec.name}-{content[:12]}"
    return run.spec.store.table(run.warehouse.tables, name), name


def stored_space(run: Run, codec: CodecChain) -> Space:
    """The space of the vectors in the table."""
    return run.model.space.with_codec(codec.id)


def table_state(run: Run) -> TableState | None:
    return parse_state(TableState, read_json(run.folder.table_state))


def vector_columns(store: Store, codec: CodecChain) -> list[pa.Field]:
    """The table's columns of vectors: the codes, and their finer copies if the codec keeps some."""
    width = code_width(codec.dimensions, codec.dtype)
    columns = [pa.field(VECTOR, pa.list_(store.column_type(codec.dtype), width))]
    if codec.rescoring_codec is not None:
        columns.append(
            pa.field(
                RESCORING_VECTOR,
                pa.list_(
                    NUMBER_TYPES[codec.rescoring_codec.dtype], codec.rescoring_codec.dimensions
                ),
            )
        )
    return columns


def encoded(store: Store, codec: CodecChain, vectors: Vectors) -> dict[str, pa.FixedSizeListArray]:
    """float32[n, d] as these columns, by name."""
    matrices = codec.encode(vectors), codec.encode_rescoring(vectors)
    pairs = zip(vector_columns(store, codec), matrices, strict=False)
    return {field.name: to_column(codes, field.type) for field, codes in pairs if codes is not None}


def _schema(run: Run, codec: CodecChain) -> pa.Schema:
    codes, *copies = vector_columns(run.spec.store, codec)
    schema = table_schema(run.spec.source.metadata_types, codes.type, stored_space(run, codec).id)
    for column in copies:
        schema = schema.append(column)
    return schema


def _forget_releases(run: Run, name: str) -> None:
    """A table that was lost is made anew, and counts its versions from 1 again: no release may name
    the old ones."""
    record = read_json(run.folder.releases)
    if record and any(entry["table"] == name for entry in record["releases"]):
        record["releases"] = [entry for entry in record["releases"] if entry["table"] != name]
        write_json(run.folder.releases, record)


def _shards(run: Run) -> dict[str, str]:
    return {partition: _inputs(run, partition) for partition in run.spec.partition_names}


def _intact(run: Run, state: TableState | None, name: str, version: int | None) -> bool:
    """Whether the table is just what the last completed update left."""
    layout = run.spec.store.layout
    return state is not None and (state.table, state.version, state.store) == (
        name,
        version,
        layout,
    )


def _inputs(run: Run, partition: str) -> str:
    chunks = run.folder.chunks.manifest(partition)
    embeddings = run.folder.embeddings.manifest(partition)
    if chunks is None or embeddings is None or embeddings.inputs != chunks.digest:
        never = chunks is None or embeddings is None
        problem = (
            "has never been embedded"
            if never
            else "holds embeddings that are not those of its chunks"
        )
        raise StoreError(
            f"Pipeline {run.spec.name!r}: partition {partition!r} {problem}. Materialize 'chunks' and 'embeddings' of "
            f"it first, or run the whole pipeline: `embedding-pipelines run {run.spec.name}`."
        )
    return f"{chunks.digest}+{embeddings.digest}"


def _difference(run: Run, table: Table, stale: list[str]) -> Difference:
    difference = Difference()
    for partition in stale:
        columns = ["chunk_id", "chunk_digest"]
        chunks = run.folder.chunks.read_columns(partition, columns)
        assert chunks is not None
        ids, refused = chunks["chunk_id"].to_pylist(), rejected_chunks(run, partition)
        digests = [None if name in refused else content for name, content in _pairs(chunks)]
        stored: dict[str, bytes | None] = {}
        if table.version is not None:
            for batch in table.scan(columns, partition):
                for name, content in _pairs(batch):
                    # Duplicate rows are rewritten.
                    stored[name] = None if name in stored else content
        difference.add[partition] = [
            content is not None and stored.get(name) != content
            for name, content in zip(ids, digests, strict=True)
        ]
        target = dict(zip(ids, digests, strict=True))
        difference.remove += [
            name
            for name, content in stored.items()
            if content is None or target.get(name) != content
        ]
    return difference


def _pairs(rows: pa.Table | pa.RecordBatch) -> Iterator[tuple[str, bytes]]:
    return zip(rows["chunk_id"].to_pylist(), rows["chunk_digest"].to_pylist(), strict=True)


def _rows(
    run: Run, difference: Difference, codec: CodecChain, schema: pa.Schema, total: int
) -> Iterator[pa.RecordBatch]:
    done = 0
    for partition, is_added in difference.add.items():
        if not any(is_added):
            continue
        first = 0
        pairs = zip(
            run.folder.chunks.read(partition),
            run.folder.embeddings.read(partition),
            strict=True,
        )
        for chunks, embeddings in pairs:
            if not chunks["chunk_id"].equals(embeddings["chunk_id"]):
                raise StoreError(
                    f"Partition {partition!r} of {run.spec.name!r}: chunks and embeddings differ."
                )
            mask = pa.array(is_added[first : first + chunks.num_rows], pa.bool_())
            first += chunks.num_rows
            if not pc.any(mask, min_count=0).as_py():
                continue
            store = run.spec.store
            rows = _table_rows(
                chunks.filter(mask), embeddings.filter(mask), partition, store, codec, schema
            )
            done += rows.num_rows
            run.progress.update("vector_store", done, total, "rows")
            yield rows


def _table_rows(
    chunks: pa.RecordBatch,
    embeddings: pa.RecordBatch,
    partition: str,
    store: Store,
    codec: CodecChain,
    schema: pa.Schema,
) -> pa.RecordBatch:
    vectors = to_matrix(embeddings[VECTOR])
    values = {"partition": pa.repeat(partition, chunks.num_rows), **encoded(store, codec, vectors)}
    columns = [values[name] if name in values else chunks[name] for name in schema.names]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _statistics(
    table: Table, state: TableState, codec: CodecChain, added: int, removed: int
) -> dict[str, Any]:
    return {
        "rows": state.rows,
        "added": added,
        "removed": removed,
        "table": state.table,
        "version": state.version,
        "dimensions": codec.dimensions,
        "dtype": codec.dtype,
        "size_bytes": table.size_bytes(),
    }
