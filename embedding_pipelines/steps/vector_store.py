"""vector_store: the searchable table is brought up to date by row differences, then its index.

The table belongs to one space and one set of columns; a changed model, codec or column makes a new
table beside the old one. What was last written is remembered with the table's version: if the two
disagree (a run died in between), every partition is compared again.
"""

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedding_pipelines.codes import encoded, schema_of
from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.errors import StoreError
from embedding_pipelines.files import read_json, write_json
from embedding_pipelines.progress import StepReport
from embedding_pipelines.releases import read_releases, tagged_versions, write_releases
from embedding_pipelines.run import Run, line_of
from embedding_pipelines.schemas import (
    IMAGE,
    TABLE_COLUMNS,
    TABLE_KEY,
    VECTOR,
    digest,
    table_schema,
)
from embedding_pipelines.space import Space
from embedding_pipelines.spec.pipeline import PipelineSpec, fingerprint
from embedding_pipelines.steps.base import Options, Reports, Step
from embedding_pipelines.steps.codec import codec_path, load_codec
from embedding_pipelines.steps.documents import absorbed
from embedding_pipelines.steps.labels import Labeller
from embedding_pipelines.storage.warehouse import parse_state
from embedding_pipelines.stores.base import Store, Table
from embedding_pipelines.vectors import checksums, from_numbers, to_matrix

# Whose rows are looked for one after the other: that takes 0.2 us for each row of the table, where
# reading what is compared takes 1.3.
FEW_PARTITIONS = 7
SORTED_BATCHES = (
    128  # of a table's rows, 4,096 each, that are in memory while they are sorted: 30 MB
)
INDEX_MEMORY = (
    256 << 20
)  # bytes; of sq 700,000 rows of 384, so that checks do not grow with the table
SAMPLE_BYTES = 8 << 20  # of the table that a run without work compares: 3 ms
CHECKSUM = "vector_checksum"
CONTENT = ("chunk_digest", CHECKSUM)  # what tells whether a row has changed
PARTITION = "partition"
COMPARED = pa.schema([(name, TABLE_COLUMNS[name]) for name in (TABLE_KEY, *CONTENT)])


@dataclass
class TableState:
    """What the last completed update left."""

    table: str
    version: int
    partitions: dict[str, str]  # partition -> digests of the shards it was made from
    trained_rows: int  # how many the index was trained on, 0 without one
    store: str  # the store's options that decide what the table is
    rows: int
    # `trained_rows` of the pipeline's other tables, by name.
    trained_before: dict[str, int] = field(default_factory=dict)
    pushed: int = 0  # the number up to which it holds what was pushed


@dataclass(frozen=True)
class Difference:
    """What the table's rows of one partition lack."""

    remove: pa.StringArray  # chunk ids
    add: pa.BooleanArray  # for each row of the shard
    new: int  # of these, those that replace no row
    unchanged: int

    @property
    def added(self) -> int:
        return int(self.add.true_count)


class VectorStoreStep(Step):
    name = "vector_store"
    inputs = ("chunks", "embeddings", "codec")
    description = "The searchable table, brought up to date by row differences, and its index."
    technologies = ("{spec.store.kind}",)
    sentence = "{rows}: {added:,} added, {removed:,} removed"
    row_statistic = "rows"
    identity = ("table", "version")
    lineage: ClassVar[Mapping[str, str]] = {
        "partition": "document_id",
        "vector_checksum": VECTOR,
    }

    def configuration(self, spec: PipelineSpec) -> str:
        return fingerprint(layout(spec))

    def columns(self, spec: PipelineSpec) -> pa.Schema:
        return table_schema(spec.metadata_types, pa.list_(pa.null()), "")

    def written_columns(self, run: Run) -> pa.Schema:
        return _schema(run, load_codec(run))

    def current(self, run: Run, partition: str | None = None) -> StepReport | None:
        if codec_path(run) is None:
            return None
        codec = load_codec(run)
        table, name = open_table(run, codec)
        state = _intact(run, name, table.version)
        if state is None or state.partitions != shard_digests(run):
            return None
        if state.pushed != _absorbed(run, state.pushed):
            return None
        if table.damage(state.version, SAMPLE_BYTES):
            return None
        return StepReport(self.name, False, _statistics(table, state, codec, 0, 0))

    def work(self, run: Run, partitions: Sequence[str], options: Options = None) -> Reports:
        yield self.current(run) or update_vector_store(run)


def update_vector_store(run: Run) -> StepReport:
    """Make the table hold just the chunks of all partitions, with their vectors encoded.

    Raises StoreError if chunks and embeddings of a partition do not belong together.
    """
    codec = load_codec(run)
    table, name = open_table(run, codec)
    state, shards = table_state(run), shard_digests(run)
    _forget_releases(run, table, name)
    if words := _damage(run, table, name):
        run.progress.note(f"{words}; the table is built anew.")
        table, name = unused_table(run.spec.store, run.warehouse.tables, name)
    intact = _intact(run, name, table.version)
    done = intact.partitions if intact else {}
    stale = [name for name, content in shards.items() if done.get(name) != content]
    with stored_rows(table, stale) as stored:
        differences = {name: compare(run, stored(name), name) for name in stale}
    removed = sum(len(difference.remove) for difference in differences.values())
    added = sum(difference.added for difference in differences.values())
    run.progress.update("vector_store", 0, added, "rows")
    before = {**state.trained_before, state.table: state.trained_rows} if state is not None else {}
    trained = before.pop(name, 0)
    if table.version is None:
        trained = 0
    if removed or added or not intact:
        remove = (name.as_py() for each in differences.values() for name in each.remove)
        table.apply(_schema(run, codec), remove, _rows(run, differences, codec, added))
        # Before a clean-up, which keeps versions with a tag: a lost one would take a release along.
        table.tag(tagged_versions(read_releases(run.folder), name))
        trained = table.index(codec.metric, trained, run.spec.search.text_index)
        run.folder.sync([table.folder_of_files])  # the state below vouches for it
    version = table.version
    assert version is not None
    existing = run.spec.store.names(run.warehouse.tables)
    before = {other: rows for other, rows in before.items() if other in existing}
    pushed = _absorbed(run, state.pushed if state else 0)
    _clean_others(run, name)
    state = TableState(
        name, version, shards, trained, layout(run.spec), table.rows(), before, pushed
    )
    write_json(run.folder.table_state, asdict(state))
    statistics = _statistics(table, state, codec, added, removed)
    return StepReport(VectorStoreStep.name, True, statistics)


def _absorbed(run: Run, before: int) -> int:
    """The number up to which the shards hold what was pushed: that of the documents, once all of
    them are cut and embedded."""
    for name in run.spec.partition_names:
        documents, chunks = run.folder.documents.manifest(name), run.folder.chunks.manifest(name)
        if documents is None or chunks is None or chunks.inputs != documents.digest:
            return before
    return absorbed(run)


def open_table(run: Run, codec: CodecChain) -> tuple[Table, str]:
    """The table that the pipeline as it is now configured belongs in, and its name."""
    schema = _schema(run, codec)
    parts = [stored_space(run, codec).id, str(schema)]
    if not codec.codecs and not run.model.space.normalized:
        parts.append("unit length")  # earlier tables hold the model's own lengths
    labels = getattr(run.spec.model, "labels", None)
    if labels is not None:
        parts.append(fingerprint(labels))
    content = digest(*(part.encode() for part in parts)).hex()
    name = _in_use(run, f"{run.spec.name}-{content[:12]}")
    return run.spec.store.table(run.warehouse.tables, name, INDEX_MEMORY), name


def _in_use(run: Run, name: str) -> str:
    """The table of this name, or the one that was built in its place: `name.2`."""
    state = table_state(run)
    newest_first = [entry.table for entry in reversed(read_releases(run.folder).releases)]
    in_state = [state.table, *state.trained_before] if state is not None else []
    for other in (*in_state, *newest_first):
        if other == name or other.startswith(f"{name}."):
            return other
    return name


def unused_table(store: Store, folder: Path, name: str) -> tuple[Table, str]:
    """A table to build in place of another one, which stays until no release needs it."""
    base, taken = name.partition(".")[0], store.names(folder)
    number = next(number for number in itertools.count(2) if f"{base}.{number}" not in taken)
    other = f"{base}.{number}"
    return store.table(folder, other), other


def _damage(run: Run, table: Table, name: str) -> str | None:
    """What hinders a run to go on from a table, in a few words."""
    try:
        _withdraw_unfinished(run, table, name)
        version = table.version
        return None if version is None else table.damage(version)
    except StoreError as error:
        return str(error)


def stored_space(run: Run, codec: CodecChain) -> Space:
    """The space of the vectors in the table."""
    return run.model.space.with_codec(codec.id)


def layout(spec: PipelineSpec) -> str:
    """The options that decide what a table is: the store's, and its full-text index if it has one."""
    language = spec.search.text_index
    return spec.store.layout if language is None else f"{spec.store.layout} text: {language}"


def table_state(run: Run) -> TableState | None:
    return parse_state(TableState, read_json(run.folder.table_state))


def other_state(run: Run) -> TableState | None:
    """As `table_state`, of the other line of a pipeline that migrates."""
    if run.spec.migration is None:
        return None
    line = line_of(run.spec, not run.is_old_line)
    folder = run.warehouse.pipeline(run.spec.name, line)
    return parse_state(TableState, read_json(folder.table_state))


def _schema(run: Run, codec: CodecChain) -> pa.Schema:
    metadata, space = run.spec.metadata_types, stored_space(run, codec)
    return schema_of(run.spec.store, codec, metadata, space.id)


def _withdraw_unfinished(run: Run, table: Table, name: str) -> None:
    """Have the table begin where the last update that was completed left it.

    Versions after it are of a run that died: if the machine died with it, their names may be on the
    disk and their contents not. A table of which no version was completed is made anew.
    """
    newest, state = table.version, table_state(run)
    if newest is None:
        return
    completed = [
        entry.version for entry in read_releases(run.folder).releases if entry.table == name
    ]
    if state is not None and state.table == name and not table.lacks(state.version):
        completed.append(state.version)
    last = max(completed, default=None)
    if last is None or last < newest:
        table.withdraw(last)


def _forget_releases(run: Run, table: Table, name: str) -> None:
    """A table that was lost is made anew, and counts its versions from 1 again: no release may name
    the old ones."""
    releases = read_releases(run.folder)
    rest = [
        entry
        for entry in releases.releases
        if entry.table != name or not table.lacks(entry.version)
    ]
    if len(rest) < len(releases.releases):
        write_releases(run.folder, releases.model_copy(update={"releases": rest}))


def _clean_others(run: Run, name: str) -> None:
    """Delete what a killed run left in the other tables of releases, which nothing writes any more."""
    releases, beside = read_releases(run.folder), other_state(run)
    kept_up = {beside.table} if beside is not None else set()
    for other in {entry.table for entry in releases.releases} - {name} - kept_up:
        table = run.spec.store.table(run.warehouse.tables, other)
        table.delete_garbage(tagged_versions(releases, other).values())


def shard_digests(run: Run) -> dict[str, str]:
    """The digests of each partition's shards. Raises StoreError if they do not belong together."""
    shards = {}
    for partition in run.spec.partition_names:
        chunks = run.folder.chunks.manifest(partition)
        embeddings = run.folder.embeddings.manifest(partition)
        problem = "holds embeddings that are not those of its chunks"
        if chunks is None or embeddings is None:
            problem = "has never been embedded"
        elif embeddings.inputs == chunks.digest:
            shards[partition] = f"{chunks.digest}+{embeddings.digest}"
            continue
        raise StoreError(
            f"Pipeline {run.spec.name!r}: partition {partition!r} {problem}. Materialize 'chunks' "
            "and 'embeddings' of it first, or run the whole pipeline: `embedding-pipelines run "
            f"{run.spec.name}`."
        )
    return shards


def _intact(run: Run, name: str, version: int | None) -> TableState | None:
    """What the last completed update left, if the table is just that."""
    state, expected = table_state(run), (name, version, layout(run.spec))
    return state if state and (state.table, state.version, state.store) == expected else None


def compare(run: Run, stored: pa.Table, partition: str, is_embedded: bool = True) -> Difference:
    """One partition of the table, as `stored_rows` gives it, beside its chunks and their vectors;
    chunks whose texts the provider rejected belong into no table.

    `is_embedded`: the chunks have their vectors. Else only chunks are compared, and all will have
    one.
    """
    stored = stored if is_embedded else _without_checksums(stored)
    manifest = run.folder.embeddings.manifest(partition) if is_embedded else None
    if not len(stored) and not (manifest and manifest.rejected):  # all of them are new
        chunks = run.folder.chunks.manifest(partition)
        rows = chunks.rows if chunks else 0
        return Difference(pa.array([], pa.string()), pa.repeat(True, rows), rows, 0)
    target = _contents(run, partition, is_embedded)
    at = pc.index_in(target[TABLE_KEY], value_set=stored[TABLE_KEY])  # null: not there
    first = from_numbers(pc.index_in(stored[TABLE_KEY], value_set=stored[TABLE_KEY]))
    is_single = pa.array(np.bincount(first, minlength=len(stored))[first] == 1)
    there = stored.append_column("is_single", is_single).take(at)  # twice: it is rewritten
    is_same = there["is_single"]
    for name in CONTENT:
        is_same = pc.and_(is_same, pc.equal(target[name], there[name]))
    is_same = pc.fill_null(is_same, False)
    has_vector = pc.is_valid(target[CHECKSUM])
    add = pc.and_not(has_vector, is_same)
    stays = np.zeros(len(stored), bool)
    stays[from_numbers(at.filter(is_same))] = True
    remove = pc.unique(stored[TABLE_KEY].filter(pa.array(~stays)))
    new = pc.and_(has_vector, pc.is_null(at))
    unchanged = _count(has_vector) - _count(add)
    return Difference(remove, add.combine_chunks(), _count(new), unchanged)


@contextlib.contextmanager
def stored_rows(
    table: Table | None, partitions: Collection[str]
) -> Iterator[Callable[[str], pa.Table]]:
    """What the table has of each partition, for `compare`. Of many partitions in one pass, sorted in
    a file: to look for the rows of one is a pass over those of all."""
    if table is None or table.version is None:
        yield lambda partition: COMPARED.empty_table()
        return
    if len(partitions) <= FEW_PARTITIONS:
        yield lambda partition: _of_batches(table.scan(COMPARED.names, partition))
        return
    with tempfile.TemporaryFile() as file:
        places = _sort_rows(table, file)
        with pa.ipc.open_file(file) as rows:
            yield lambda name: _of_batches(rows.get_batch(place) for place in places.get(name, ()))


def _sort_rows(table: Table, file: IO[bytes]) -> dict[str, list[int]]:
    """Write the rows by partition, SORTED_ROWS at a time; the numbers of each partition's batches."""
    places, count = dict[str, list[int]](), itertools.count()
    with pa.ipc.new_file(file, COMPARED) as writer:
        batches = table.scan([*COMPARED.names, PARTITION])
        while block := list(itertools.islice(batches, SORTED_BATCHES)):
            rows = pa.Table.from_batches(block).sort_by(PARTITION)
            first = 0
            for entry in pc.value_counts(rows[PARTITION]).to_pylist():
                part = rows.slice(first, entry["counts"])
                writer.write_batch(_of_batches(part.to_batches()).to_batches()[0])
                places.setdefault(entry["values"], []).append(next(count))
                first += len(part)
    return places


def _of_batches(batches: Iterable[pa.RecordBatch]) -> pa.Table:
    """Rows with the columns that are compared, in one piece."""
    parts = [COMPARED.empty_table()]
    for batch in batches:
        parts.append(pa.table([batch[name] for name in COMPARED.names], schema=COMPARED))
    return pa.concat_tables(parts).combine_chunks()


def _contents(run: Run, partition: str, is_embedded: bool) -> pa.Table:
    """Each chunk's id with what tells whether it has changed: its digest, and its vector's
    checksum, null for one without a vector."""
    columns, parts = [TABLE_KEY, CONTENT[0]], [COMPARED.empty_table()]
    if not is_embedded:
        for batch in run.folder.chunks.read(partition, columns):
            nothing = pa.nulls(batch.num_rows, pa.int64())
            columns_of = [batch[name] for name in columns]
            parts.append(pa.table([*columns_of, nothing], schema=COMPARED))
        return _without_checksums(pa.concat_tables(parts).combine_chunks())
    for batch, embeddings in pairs(run, partition, columns):
        vectors = embeddings[VECTOR]
        mask = pc.is_null(vectors).to_numpy(zero_copy_only=False)
        numbers = pa.array(checksums(vectors), pa.int64(), mask=mask)
        columns_of = [batch[name] for name in columns]
        parts.append(pa.table([*columns_of, numbers], schema=COMPARED))
    return pa.concat_tables(parts).combine_chunks()


def _without_checksums(rows: pa.Table) -> pa.Table:
    return rows.set_column(2, CHECKSUM, pa.repeat(pa.scalar(0, pa.int64()), len(rows)))


def _count(mask: pa.ChunkedArray) -> int:
    """How many are true."""
    return pc.sum(mask).as_py() or 0


def pairs(
    run: Run, partition: str, columns: list[str] | None = None
) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
    """Chunks with their embeddings. Raises StoreError if they do not belong together."""
    chunks = run.folder.chunks.read(partition, columns)
    embeddings = run.folder.embeddings.read(partition)
    for left, right in itertools.zip_longest(chunks, embeddings):
        if left is None or right is None or not left["chunk_id"].equals(right["chunk_id"]):
            raise StoreError(
                f"Partition {partition!r} of {run.spec.name!r}: chunks and embeddings differ. Make "
                f"the vectors anew: `embedding-pipelines run {run.spec.name} --re-embed`."
            )
        yield left, right


def _rows(
    run: Run, differences: Mapping[str, Difference], codec: CodecChain, total: int
) -> Iterator[pa.RecordBatch]:
    """The rows to add, with their vectors encoded."""
    schema, store, done = _schema(run, codec), run.spec.store, 0
    labels = Labeller.of(run)
    for partition, difference in differences.items():
        if not difference.added:
            continue
        first = 0
        for chunks, embeddings in pairs(run, partition):
            mask = difference.add.slice(first, chunks.num_rows)
            first += chunks.num_rows
            rows, vectors = chunks.filter(mask), to_matrix(embeddings[VECTOR].filter(mask))
            if not rows.num_rows:
                continue
            codes = encoded(store, codec, vectors)
            values = {
                PARTITION: pa.repeat(partition, rows.num_rows),
                CHECKSUM: pa.array(checksums(embeddings[VECTOR].filter(mask)), pa.int64()),
                **codes,
            }
            if labels is not None:
                values |= labels.columns(vectors, rows[IMAGE])
            columns = [values[name] if name in values else rows[name] for name in schema.names]
            done += rows.num_rows
            run.progress.update("vector_store", done, total, "rows")
            yield pa.RecordBatch.from_arrays(columns, schema=schema)


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
