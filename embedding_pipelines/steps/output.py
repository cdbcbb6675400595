"""output: the rows of the live release as Parquet files, where the pipeline's file says `output`.

The vectors are those that the model gave, before any compression. A partition whose rows are as they
were is not written again. What fails here leaves the live release as it is, and the next run goes on.
"""

import contextlib
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedding_pipelines.errors import BucketError, ConfigError, ReleaseError
from embedding_pipelines.files import read_json, temporary_folder, write_json
from embedding_pipelines.objects import is_uri
from embedding_pipelines.progress import StepReport
from embedding_pipelines.releases import Release, live_release, read_releases
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import IMAGE, SPACE_ID_KEY, TABLE_TYPES, VECTOR, digest
from embedding_pipelines.space import Space
from embedding_pipelines.spec.output import output_problem
from embedding_pipelines.spec.pipeline import PipelineSpec, fingerprint, partition_of
from embedding_pipelines.steps.base import Options, Reports, Step
from embedding_pipelines.steps.documents import read_files
from embedding_pipelines.steps.labels import Labeller
from embedding_pipelines.steps.reading import FileStatistics
from embedding_pipelines.steps.vector_store import pairs, shard_digests, table_state
from embedding_pipelines.storage.bucket import bucket_of
from embedding_pipelines.storage.output import (
    FORMAT,
    INDEX,
    Delivery,
    Index,
    Output,
    OutputFile,
    absolute,
    open_output,
)
from embedding_pipelines.storage.warehouse import (
    PipelineFolder,
    Warehouse,
    parse_state,
    write_table,
)
from embedding_pipelines.vectors import to_matrix

# Of chunks; what else they say is for the pipeline alone.
LEFT_OUT = ("tokens", "unknown_tokens", "unseen_tokens", "document_digest", "chunk_digest")


@dataclass
class OutputState:
    """What was last delivered, and where."""

    place: str  # absolute
    release: int  # 0: its first delivery to this place has not ended yet
    inputs: str  # digest of all that it was made from
    tag: str  # ETag of the index
    sizes: dict[str, int]  # of the files that the index names, by name
    statistics: dict[str, Any] = field(default_factory=dict)
    former: list[str] = field(default_factory=list)  # places that held it before

    def is_of(self, run: Run, release: int | None) -> bool:
        """Whether it was a release's, where the pipeline's file says it belongs."""
        return (self.place, self.release) == (_place(run), release)


class OutputStep(Step):
    name = "output"
    inputs = ("chunks", "embeddings", "release")
    description = "The rows of the live release as Parquet files, and the index that names them."
    technologies = ("parquet",)
    sentence = "{rows} of release {of_release} in {output}: {written} written"
    row_statistic = "rows"
    identity = ("of_release", "output", "tag")

    def applies(self, spec: PipelineSpec) -> bool:
        return spec.output is not None

    def configuration(self, spec: PipelineSpec) -> str:
        return fingerprint(spec.output, str(FORMAT))

    def current(self, run: Run, partition: str | None = None) -> StepReport | None:
        state, live = output_state(run), read_releases(run.folder).live
        if state is None or not state.is_of(run, live):
            return None
        if state.inputs != _inputs(run) or not _stands(run, state):
            return None
        return StepReport(self.name, False, {**state.statistics, "written": 0, "removed": 0})

    def work(self, run: Run, partitions: Sequence[str], options: Options = None) -> Reports:
        """Raises ConfigError for a place that cannot hold it, ReleaseError if the rows at hand are
        not those of the live release, BucketError if the store refuses, or does not answer,
        BusyError if another machine has taken over."""
        check_place(run)
        yield self.current(run) or write_output(run)


def output_state(run: Run) -> OutputState | None:
    """What was last delivered, None if nothing was."""
    return _read_state(run.folder)


def _read_state(folder: PipelineFolder) -> OutputState | None:
    return parse_state(OutputState, read_json(folder.output))


def places_of(folder: PipelineFolder) -> list[str]:
    """Where the pipeline has ever delivered to, the last place first."""
    state = _read_state(folder)
    return [state.place, *state.former] if state is not None else []


def is_delivered(run: Run) -> bool:
    """Whether the live release was delivered where the pipeline's file says, as far as records
    tell; not since `forget` has taken rows out."""
    state, live = output_state(run), read_releases(run.folder).live
    return state is not None and live is not None and state.inputs != "" and state.is_of(run, live)


def check_place(run: Run) -> None:
    """Raises ConfigError for an `output` that would be read as input, or overwritten."""
    spec, home = run.spec, run.warehouse.home
    problem = output_problem(spec.output or "", spec.source, home, bucket_of(home))
    if problem:
        raise ConfigError(f"Pipeline {spec.name!r}: output: {problem}.")


def write_output(run: Run) -> StepReport:
    """Deliver the live release: files of partitions that have changed, then the index, then what no
    index names any more goes."""
    live, place = live_release(run.folder), _place(run)
    before, inputs = output_state(run), _inputs(run)
    try:
        output = open_output(place, run.warehouse.home)
        index = output.index(run.spec.name)
        if before is None or before.place != place:
            before = _begin(run, place, before)
        is_at_hand = _is_at_hand(run, live)
        if is_at_hand:
            current, written = _deliver(run, output, index, live)
        else:
            earlier, written = _earlier(index, live), 0
            if earlier is None:
                return _left(run, place, index, live)
            current = earlier
        index = _following(run.spec.name, index, current)
        run.require_lease()  # the files are named by their content, and of no reader's until then
        tag = output.write_index(index)
        removed = output.delete_unnamed(index)
    except BucketError as error:
        raise BucketError(
            f"{error} Release {live.number} is live and searched all the same; what is delivered "
            "in 'output' is as it was. The next run delivers it."
        ) from None
    statistics = {
        "rows": current.rows,
        "of_release": current.release,
        "output": place,
        "index": f"{place}/{INDEX}",
        "tag": tag,
        "files": len(current.files),
        "size_bytes": sum(file.size_bytes for file in current.files.values()),
        "written": written,
        "removed": removed,
    }
    entries = [*current.files.values(), *(index.previous.files.values() if index.previous else ())]
    sizes = {file.name: file.size_bytes for file in entries}
    state = OutputState(place, current.release, inputs, tag, sizes, statistics, before.former)
    write_json(run.folder.output, asdict(state))
    return StepReport(OutputStep.name, True, statistics)


def _begin(run: Run, place: str, before: OutputState | None) -> OutputState:
    """Put on record that rows are about to be in a place, so that `forget` and `delete` find those of
    a first delivery that is killed."""
    former = {*before.former, before.place} - {place} if before else set[str]()
    if before:
        run.progress.note(
            f"The output is in {place} from now on. What is in {before.place} stays as it is: delete "
            "it if nobody reads it."
        )
    state = OutputState(place, 0, "", "", {}, {"rows": 0}, sorted(former))
    write_json(run.folder.output, asdict(state))
    return state


def _is_at_hand(run: Run, live: Release) -> bool:
    """Whether the last rows that were stored are those of the live release; False after a rollback.
    Raises ReleaseError if there are newer ones that are not stored."""
    state = table_state(run)
    if state is None or (state.table, state.version) != (live.table, live.version):
        return False
    if state.partitions != shard_digests(run):
        raise ReleaseError(
            f"Pipeline {run.spec.name!r}: the rows at hand are not those of release {live.number}. "
            f"Run all of it: `embedding-pipelines run {run.spec.name}`."
        )
    return True


def _deliver(run: Run, output: Output, index: Index | None, live: Release) -> tuple[Delivery, int]:
    """The files of the live release, and how many of them were written now."""
    there, digests, labeller = output.objects(), shard_digests(run), Labeller.of(run)
    schema, labels = _schema(run), repr(getattr(run.spec.model, "labels", None))
    old = {
        (name, file.inputs): file
        for delivery in (index and index.previous, index and index.current)
        if delivery
        for name, file in delivery.files.items()
        if (entry := there.get(file.name)) and entry.size_bytes == file.size_bytes
    }
    files, written, sources = dict[str, OutputFile](), 0, _Sources(run)
    space = run.model.space
    with temporary_folder(Path(gettempdir()), "embedding-pipelines-output-") as folder:
        for number, partition in enumerate(run.spec.partition_names):
            run.progress.update(
                OutputStep.name, number, len(run.spec.partition_names), "partitions"
            )
            origins = sources.of_partition(partition)
            key = fingerprint(str(FORMAT), digests[partition], space.id, origins.digest, labels)
            file = old.get((partition, key))
            if file is None:
                path = folder / partition
                content = _rows(run, partition, origins, schema, labeller)
                rows = write_table(path, schema, content)
                if not rows:
                    continue
                file = output.put(partition, path, rows, key)
                path.unlink()
                was_there = there.get(file.name)
                written += was_there is None or was_there.size_bytes != file.size_bytes
            files[partition] = file
    rows = sum(file.rows for file in files.values())
    delivery = Delivery(
        live.number,
        live.released_at.isoformat(timespec="seconds"),
        _model(space),
        space.dimensions,
        space.id,
        rows,
        files,
    )
    return delivery, written


def _earlier(index: Index | None, live: Release) -> Delivery | None:
    """What was delivered of a release that somebody has gone back to, if its files are there
    still."""
    deliveries = (index.current, index.previous) if index else ()
    return next((each for each in deliveries if each and each.release == live.number), None)


def _left(run: Run, place: str, index: Index | None, live: Release) -> StepReport:
    """The report where the rows of the live release are no longer at hand."""
    release = index.current.release if index else 0
    what = f"stays that of release {release}" if release else "waits for the next release"
    run.progress.note(
        f"Release {live.number} is live after a rollback, and its rows are no longer at hand: the "
        f"output in {place} {what}."
    )
    statistics = {
        "rows": index.current.rows if index else 0,
        "of_release": release,
        "output": place,
        "index": "",
        "tag": "",
        "written": 0,
    }
    return StepReport(OutputStep.name, False, statistics)


def _following(pipeline: str, index: Index | None, current: Delivery) -> Index:
    """The index after a delivery: the release before it stays."""
    if index is None:
        return Index(pipeline, current, None)
    previous = index.current if index.current.release != current.release else index.previous
    return Index(pipeline, current, previous)


@dataclass(frozen=True)
class _Origins:
    """Where each document of a partition comes from."""

    documents: pa.Array  # string[n]
    uris: pa.Array  # string[n]
    tags: pa.Array  # string[n]
    digest: str


class _Sources:
    """Where documents come from. Of a file that is one document the tag decides whether its row is
    written again; one of many says nothing of a single row, which keeps the tag that it was written
    with."""

    def __init__(self, run: Run) -> None:
        self._run = run
        files = read_files(run)
        self._names = pa.array(files, pa.string())
        self._tags = pa.array(itertools.starmap(_tag, files.items()), pa.string())
        own = [entry.rows == 1 for entry in files.values()]
        self._own = pc.if_else(pa.array(own, pa.bool_()), self._tags, pa.scalar(None, pa.string()))

    def of_partition(self, partition: str) -> _Origins:
        columns = ["document_id", "source_file"]
        rows = self._run.folder.documents.read_columns(partition, columns)
        if rows is None:
            empty = pa.array([], pa.string())
            return _Origins(empty, empty, empty, "")
        rows = rows.sort_by("document_id")  # their order is not part of it
        documents, uris = (rows[name].combine_chunks() for name in columns)
        places = pc.index_in(uris, self._names)
        sink = pa.BufferOutputStream()
        origins = pa.record_batch([documents, uris, self._own.take(places)], names=["d", "u", "t"])
        with pa.ipc.new_stream(sink, origins.schema) as writer:
            writer.write_batch(origins)
        return _Origins(
            documents, uris, self._tags.take(places), digest(sink.getvalue().to_pybytes()).hex()
        )


def _tag(name: str, entry: FileStatistics) -> str | None:
    """The ETag of an object; of a file its size and when it was changed; None of what has neither,
    as a part of a table."""
    if len(entry.stamp) < 2:
        return None
    size, changed, *_ = entry.stamp
    return str(changed) if is_uri(name) else f"{size}-{changed}"


def _model(space: Space) -> str:
    return f"{space.provider}:{space.model}"


def _schema(run: Run) -> pa.Schema:
    """The columns of the files: those of chunks, then what tells model and source, then the
    vector."""
    space = run.model.space
    chunks = run.folder.chunks.schema(run.spec.partition_names[0])
    assert chunks is not None
    types = run.spec.metadata_types  # labels are in the table alone
    return pa.schema(
        [
            *(column for column in chunks if column.name not in LEFT_OUT),
            *(
                pa.field(name, TABLE_TYPES[types[name]])
                for name in types
                if name not in chunks.names
            ),
            pa.field("source_uri", pa.string()),
            pa.field("source_tag", pa.string()),
            pa.field("embedding_model", pa.string()),
            pa.field("embedding_dimensions", pa.int32()),
            pa.field("embedding_space", pa.string()),
            pa.field(VECTOR, pa.list_(pa.float32(), space.dimensions)),
        ],
        metadata={SPACE_ID_KEY: space.id.encode()},
    )


def _rows(
    run: Run,
    partition: str,
    origins: _Origins,
    schema: pa.Schema,
    labeller: Labeller | None,
) -> Iterator[pa.RecordBatch]:
    """The rows that searches find: those whose text or image the provider took."""
    space = run.model.space
    for chunks, embeddings in pairs(run, partition):
        mask = embeddings[VECTOR].is_valid()
        rows, vectors = chunks.filter(mask), embeddings[VECTOR].filter(mask)
        places = pc.index_in(rows["document_id"], origins.documents)
        count = rows.num_rows
        values = {
            "source_uri": origins.uris.take(places),
            "source_tag": origins.tags.take(places),
            "embedding_model": pa.repeat(_model(space), count),
            "embedding_dimensions": pa.repeat(pa.scalar(space.dimensions, pa.int32()), count),
            "embedding_space": pa.repeat(space.id, count),
            VECTOR: vectors,
        }
        if labeller is not None:
            values |= labeller.columns(to_matrix(vectors), rows[IMAGE])
        columns = [values[name] if name in values else rows[name] for name in schema.names]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _inputs(run: Run) -> str:
    """A digest of all that an output is made from."""
    folder, parts = run.folder, list[str]()
    for shards in (folder.documents, folder.chunks, folder.embeddings):
        manifests = map(shards.manifest, run.spec.partition_names)
        parts += [manifest.digest if manifest else "" for manifest in manifests]
    stamps = {name: entry.stamp for name, entry in read_files(run).items()}
    return fingerprint(OutputStep().configuration(run.spec), *parts, repr(sorted(stamps.items())))


def _place(run: Run) -> str:
    return absolute(run.spec.output or "", run.warehouse.home)


def _stands(run: Run, state: OutputState) -> bool:
    """Whether all that the index names is there, and the index is the one that was written."""
    if not is_uri(state.place) and not Path(state.place).is_dir():
        return False
    objects = open_output(state.place, run.warehouse.home).objects()
    index = objects.get(INDEX)
    if index is None or index.tag != state.tag:
        return False
    sizes = {name: entry.size_bytes for name, entry in objects.items()}
    return all(sizes.get(name) == size for name, size in state.sizes.items())


def forget_rows(
    run: Run,
    ids: Collection[str],
    before: int | None,
    after: int | None,
    require_lease: Callable[[], None],
) -> int:
    """Erase documents from all that was ever delivered, and what no index names any more; how many
    rows went. The next run writes these partitions anew. What holds the release that was live
    `before` holds the one that is live `after`, without these documents; all else keeps its number.

    Raises BucketError if the store refuses, or does not answer: the same call goes on from there;
    and what `require_lease` raises where the pipeline's lease is another machine's by now.
    """
    state, gone = output_state(run), 0
    if state is None:
        return 0
    names = run.spec.partition_names
    own = {names[partition_of(document, len(names))] for document in ids}
    for place in places_of(run.folder):
        output = open_output(place, run.warehouse.home)
        index = output.index(run.spec.name)
        if index is None:
            output.delete_unnamed(None)  # of a first delivery that was killed
            continue
        files = dict(index.current.files)
        for partition in own & files.keys():
            file, count = _without(output, partition, files.pop(partition), ids)
            gone += count
            if file is not None:
                files[partition] = file
        rows = sum(file.rows for file in files.values())
        number = index.current.release
        number = after if after is not None and number == before else number
        current = replace(index.current, release=number, rows=rows, files=files)
        index = Index(index.pipeline, current, None)
        require_lease()
        output.write_index(index)
        output.delete_unnamed(index)
        if place == state.place:
            state = replace(state, release=number, statistics={**state.statistics, "rows": rows})
    write_json(run.folder.output, asdict(replace(state, inputs="")))
    return gone


def delete_outputs(warehouse: Warehouse, name: str) -> None:
    """Delete what a pipeline has delivered: the index, then the files. A place that another pipeline
    has taken since is left to it. Raises BucketError if the store refuses, or does not answer."""
    for place in places_of(warehouse.pipeline(name)):
        output = open_output(place, warehouse.home)
        with contextlib.suppress(ConfigError):
            output.index(name)  # raises if it is another pipeline's
            output.delete()


def _without(
    output: Output, partition: str, file: OutputFile, ids: Collection[str]
) -> tuple[OutputFile | None, int]:
    """A partition's file without some documents, None if no row is left; how many rows went."""
    with temporary_folder(Path(gettempdir()), "embedding-pipelines-output-") as folder:
        path, rest = folder / "all", folder / "rest"
        output.fetch(file, path)
        count = 0

        def rows(parquet: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
            nonlocal count
            for batch in parquet.iter_batches():
                mask = pc.is_in(batch["document_id"], pa.array(sorted(ids), pa.string()))
                count += mask.true_count
                yield batch.filter(pc.invert(mask))

        with pq.ParquetFile(path, pre_buffer=False) as parquet:
            left = write_table(rest, parquet.schema_arrow, rows(parquet))
        if not count:
            return file, 0
        return (output.put(partition, rest, left, "") if left else None), count
