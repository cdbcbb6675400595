"""Where documents stand in what a pipeline keeps: their rows, and every text of theirs."""

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.errors import EmbeddingPipelinesError, StoreError
from embedding_pipelines.metrics.known_items import known_item
from embedding_pipelines.overlay import read_records
from embedding_pipelines.preprocessing.base import Counts
from embedding_pipelines.providers.base import InputType
from embedding_pipelines.releases import read_history, read_releases
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import (
    DIGEST,
    DOCUMENT_DIGEST,
    IMAGE,
    SPACE_ID_KEY,
    TEXT,
    VECTOR,
    has_images,
)
from embedding_pipelines.sources.push import Push
from embedding_pipelines.spec.pipeline import partition_of
from embedding_pipelines.steps.spill import contents_of
from embedding_pipelines.storage.forgotten import read_forgotten
from embedding_pipelines.storage.pushed import pushed_log
from embedding_pipelines.storage.quotes import strings
from embedding_pipelines.stores.base import Table
from embedding_pipelines.vectors import Vectors, to_matrix

CHUNK = ["document_id", "start"]
SEARCHES = 20  # chunks whose vectors the table is searched with afterwards


@dataclass
class Traces:
    """What there is of some documents."""

    ids: set[str] = field(default_factory=set)
    on_record: set[str] = field(default_factory=set)  # those of them that stand anywhere
    # Of images their pixels; without source.id of all documents, as `contents_of` tells them.
    contents: set[bytes] = field(default_factory=set)
    files: set[str] = field(default_factory=set)  # source files that they stand in
    # Of documents and chunks, old versions included; of images the digests of their pixels, too.
    texts: set[str] = field(default_factory=set)
    queries: set[str] = field(default_factory=set)  # that checks made of their texts
    shared: set[str] = field(default_factory=set)  # those of the texts that other documents have
    vectors: list[Vectors] = field(default_factory=list)  # vectors float32[d] of their chunks
    rows: int = 0  # of the live release
    equal: int = 0  # documents that are among the ids for their content alone
    pushed: int = 0  # changes in the log of pushed documents
    releases: list[int] = field(default_factory=list)  # that hold any of them
    unreadable: list[str] = field(default_factory=list)  # sentences on what nobody could look into

    @property
    def own_texts(self) -> set[str]:
        return self.texts - self.shared


def trace(run: Run, ids: Collection[str], files: Collection[str]) -> Traces:
    """Where documents of these ids and source files stand; without source.id all others of equal
    content, too, for the content tells a document. Raises StoreError for a damaged shard."""
    traces = Traces(ids=set(ids))
    names = run.spec.partition_names
    if files:
        traces.ids |= _forgotten_ids(run, files)
    own = names if files else sorted(partitions(run, traces.ids))
    _trace_documents(run, traces, own, files)
    before = len(traces.ids)
    traces.contents |= _released_pixels(run, traces.ids) | _half_forgotten(run)
    if traces.contents:
        _trace_documents(run, traces, names, files)
    traces.equal = len(traces.ids) - before
    own = sorted(partitions(run, traces.ids))
    for line in all_lines(run):  # whose models may cut otherwise
        for name in own:
            _trace_chunks(line, traces, name)
    _trace_tables(run, traces, own)
    _trace_pushed(run, traces)
    traces.texts.discard("")  # of an image without a caption
    _find_shared(run, traces)
    return traces


def all_lines(run: Run) -> list[Run]:
    """The run on the line that searches read and, of a pipeline that migrates, on the other one."""
    if run.spec.migration is None:
        return [run]
    both = [Run(run.spec, run.warehouse, run.progress, is_old_line=old) for old in (True, False)]
    releases = read_releases(run.folder)
    live = releases.get(releases.live)
    return both[::-1] if live is not None and live.line else both


def partitions(run: Run, ids: Collection[str]) -> set[str]:
    names = run.spec.partition_names
    return {names[partition_of(name, len(names))] for name in ids}


def rows_of(batch: pa.RecordBatch | pa.Table, ids: Collection[str]) -> pa.Array:
    """Which rows belong to these documents, bool[n]; without the documents' ids, by the chunks'."""
    if "document_id" in batch.schema.names:
        return pc.is_in(batch["document_id"], pa.array(sorted(ids), pa.string()))
    owners = [name.rpartition("#")[0] for name in batch["chunk_id"].to_pylist()]
    return pa.array([owner in ids for owner in owners], pa.bool_())


def cache_keys(run: Run, texts: Collection[str]) -> tuple[list[bytes], list[str]]:
    """The keys of texts in the cache, in every space that anybody ever filed vectors in, as when models
    were compared, that the pipeline ever released or holds, and in that of its model; and in a
    sentence each why a space is missing."""
    folder, notes = run.folder, list[str]()
    spaces = run.cache.spaces() if run.warehouse.cache.exists() else set()
    spaces |= {release.space.with_codec(None).id for release in read_releases(folder).releases}
    spaces |= {str(line["space"]) for line in read_history(folder)[0] if "space" in line}
    for line in all_lines(run):
        for name in run.spec.partition_names:
            schema = line.folder.embeddings.schema(name)
            if schema is not None:
                spaces.add((schema.metadata or {}).get(SPACE_ID_KEY, b"").decode())
        try:
            spaces.add(line.model.space.id)
        except EmbeddingPipelinesError as error:
            notes.append(
                "The pipeline file's model cannot be opened, so its vectors of these texts stay in "
                f"the cache if it has never finished a run: {error}"
            )
    kinds: tuple[InputType | Literal["image"], ...] = ("document", "query", "image")
    keys = [
        EmbeddingCache.key(space, kind, text)
        for space in sorted(spaces)
        for text in sorted(texts)
        for kind in kinds
    ]
    return keys, notes


def _trace_documents(
    run: Run, traces: Traces, names: Collection[str], files: Collection[str]
) -> None:
    own, sources = pa.array(sorted(traces.ids), pa.string()), pa.array(sorted(files), pa.string())
    by_content = run.spec.source.id is None
    contents = sorted(traces.contents)
    digests = pa.array(contents, DIGEST)
    pixels = pa.array([content.hex() for content in contents], pa.string())
    for name in names:
        embedded = _contents(run.folder.documents.schema(name))
        columns = ["document_id", "source_file", *embedded, DOCUMENT_DIGEST]
        for batch in run.folder.documents.read(name, columns):
            mask = pc.or_(
                pc.is_in(batch["document_id"], own), pc.is_in(batch["source_file"], sources)
            )
            mask = pc.or_(mask, pc.is_in(batch[DOCUMENT_DIGEST], digests))
            if IMAGE in embedded:
                mask = pc.or_(mask, pc.is_in(batch[IMAGE], pixels))
            rows = batch.filter(mask)
            traces.on_record |= set(rows["document_id"].to_pylist())
            traces.files |= set(rows["source_file"].to_pylist())
            traces.texts |= {text for name in embedded for text in rows[name].to_pylist() if text}
            if IMAGE in embedded or by_content:
                own_digests = rows[DOCUMENT_DIGEST].to_pylist()
                traces.contents.update(contents_of(IMAGE in embedded, rows, own_digests))
    traces.ids |= traces.on_record


def _trace_chunks(run: Run, traces: Traces, name: str) -> None:
    """Of one partition: chunks, their vectors, and texts that the provider rejected."""
    chunks = run.folder.chunks
    for batch in chunks.read(name, [*CHUNK, *_contents(chunks.schema(name))]):
        _add_texts(run, traces, batch.filter(rows_of(batch, traces.ids)))
    for batch in run.folder.embeddings.read(name):
        vectors = batch.filter(rows_of(batch, traces.ids))[VECTOR].drop_null()
        traces.vectors += list(to_matrix(vectors))[: SEARCHES - len(traces.vectors)]


def _trace_pushed(run: Run, traces: Traces) -> None:
    """What was pushed of the documents, replaced since or not: their texts, and the chunks of these,
    which are in the embedding cache before any run."""
    changes = [change for _, change in pushed_log(run.warehouse, run.spec.name).changes()]
    own = [change for change in changes if change.id in traces.ids]
    traces.pushed = len(own)
    traces.on_record |= {change.id for change in own}
    records = [change.record for change in own if change.record is not None]
    if not records:
        return
    releases = read_releases(run.folder)
    specs = [run.spec, *(entry.spec for entry in releases.releases)]
    try:
        tokenizer, limit = run.model.tokenizer, run.model.limits.max_tokens
        for spec in specs:
            cutter = spec.preprocessing.cutter(tokenizer, limit)
            documents, _, _ = read_records(Push.of(spec.source), records)
            traces.texts |= {text for batch in documents for text in batch["text"].to_pylist()}
            for batch in spec.preprocessing.process(documents, cutter, Counts()):
                _add_texts(run, traces, batch)
    except EmbeddingPipelinesError as error:
        traces.unreadable.append(
            "The pipeline file's model cannot be opened, so that chunks of these documents stay in "
            f"the cache if no run has read them yet: {error}"
        )
    others = {
        text
        for change in changes
        if change.id not in traces.ids and change.record is not None
        for text in strings(change.record)
    }
    traces.shared |= {text for text in traces.texts if any(text in other for other in others)}


def _forgotten_ids(run: Run, files: Collection[str]) -> set[str]:
    """Ids in tables of documents that were forgotten with these files: a command that was killed
    has left them there, and a run since then has left them out of the documents."""
    forgotten = read_forgotten(run.warehouse.forgotten / f"{run.spec.name}.json")
    if not any(forgotten.has("file", name) for name in files):
        return set()
    hashes, ids = forgotten.of_files(files), set[str]()
    for table, version in _tables(run):
        with contextlib.suppress(StoreError, OSError):  # `_trace_tables` says so
            if version is None and table.version is None:
                continue
            for batch in table.scan(["document_id"], version=version):
                ids.update(batch["document_id"].to_pylist())
    if run.spec.source.id is None:  # ids are files and rows
        return {name for name in ids if name.rpartition(":")[0] in files or name in files}
    return {name for name in ids if not hashes.isdisjoint(forgotten.hashes("id", name))}


def _released_pixels(run: Run, ids: Collection[str]) -> set[bytes]:
    """The pixels that images of these ids have in any table: one may be gone from the source, and
    stand in it under another name."""
    pixels = set[bytes]()
    for table, version in _tables(run):
        with contextlib.suppress(StoreError, OSError):  # `_trace_tables` says so
            if version is None and table.version is None:
                continue
            if has_images(table.schema(version)):
                for batch in table.scan(["document_id", IMAGE], version=version):
                    images = batch.filter(rows_of(batch, ids))[IMAGE].drop_null().to_pylist()
                    pixels.update(map(bytes.fromhex, images))
    return pixels


def _half_forgotten(run: Run) -> set[bytes]:
    """Contents of documents on record that are to be forgotten: a command that was killed has left
    them there."""
    forgotten = read_forgotten(run.warehouse.forgotten / f"{run.spec.name}.json")
    if not forgotten:
        return set()
    contents, documents = set[bytes](), run.folder.documents
    for name in run.spec.partition_names:
        embedded = _contents(documents.schema(name))
        if run.spec.source.id is not None and IMAGE not in embedded:
            continue
        for batch in documents.read(name, [DOCUMENT_DIGEST, *embedded]):
            digests = batch[DOCUMENT_DIGEST].to_pylist()
            contents.update(contents_of(IMAGE in embedded, batch, digests))
    return {content for content in contents if forgotten.has("content", content)}


def _tables(run: Run) -> Iterator[tuple[Table, int | None]]:
    """Every table as each release has it, and as it is now."""
    for entry in read_releases(run.folder).releases:
        yield entry.spec.store.table(run.folder.tables, entry.table), entry.version
    for name in tables_of(run):
        yield run.spec.store.table(run.folder.tables, name), None


def _trace_tables(run: Run, traces: Traces, names: Collection[str]) -> None:
    """In every release, and in what was written since the newest one."""
    releases = read_releases(run.folder)
    for entry in releases.releases:
        table = entry.spec.store.table(run.folder.tables, entry.table)
        try:
            rows = sum(_trace_table(run, traces, table, names, entry.version))
        except (StoreError, OSError) as error:
            traces.unreadable.append(f"Release {entry.number} could not be read: {error}")
            continue
        if rows:
            traces.releases.append(entry.number)
        if entry.number == releases.live:
            traces.rows = rows
    store = run.spec.store
    for name in tables_of(run):
        table = store.table(run.folder.tables, name)
        try:
            if table.version is not None:
                list(_trace_table(run, traces, table, names, None))
        except (StoreError, OSError) as error:
            traces.unreadable.append(f"Table {name} could not be read: {error}")


def tables_of(run: Run) -> list[str]:
    """All tables of the pipeline, whoever left them."""
    names = run.spec.store.names(run.folder.tables)
    return [name for name in names if name.rpartition("-")[0] == run.spec.name]


def _trace_table(
    run: Run, traces: Traces, table: Table, names: Collection[str], version: int | None
) -> Iterator[int]:
    """How many rows of the documents each batch has."""
    columns = [*CHUNK, *_contents(table.schema(version))]
    for name in names:
        for batch in table.scan(columns, name, version):
            rows = batch.filter(rows_of(batch, traces.ids))
            _add_texts(run, traces, rows)
            yield rows.num_rows


def _add_texts(run: Run, traces: Traces, rows: pa.RecordBatch) -> None:
    has_title = len(run.spec.source.text) > 1
    traces.on_record |= set(rows["document_id"].to_pylist())
    for start, text in zip(rows["start"].to_pylist(), rows["text"].to_pylist(), strict=True):
        traces.texts.add(text)
        query = known_item(text, text.partition("\n")[0] if has_title else None)
        if start == 0 and query is not None:
            traces.queries.add(query)
    if IMAGE in rows.schema.names:
        traces.texts.update(image for image in rows[IMAGE].to_pylist() if image)


def _find_shared(run: Run, traces: Traces) -> None:
    """Texts that others have too are no trace: they stay with those."""
    texts = pa.array(sorted(traces.texts), pa.string())
    for batch in _rows_that_stay(run) if len(texts) else ():
        others = batch.filter(pc.invert(rows_of(batch, traces.ids)))
        for column in {TEXT, IMAGE} & {*batch.schema.names}:
            same = others[column].filter(pc.is_in(others[column], texts))
            traces.shared |= set(same.to_pylist())


def _rows_that_stay(run: Run) -> Iterator[pa.RecordBatch]:
    """Owners and contents of all rows on record, and of the live release, whose documents may be gone
    from the source since."""
    folders = [line.folder for line in all_lines(run)]
    for shards in (run.folder.documents, *(folder.chunks for folder in folders)):
        for name in run.spec.partition_names:
            yield from shards.read(name, ["document_id", *_contents(shards.schema(name))])
    releases = read_releases(run.folder)
    live = releases.get(releases.live)
    if live is not None:
        table = live.spec.store.table(run.folder.tables, live.table)
        with contextlib.suppress(StoreError, OSError):  # `_trace_tables` says so
            columns = ["document_id", *_contents(table.schema(live.version))]
            yield from table.scan(columns, version=live.version)


def _contents(schema: pa.Schema | None) -> list[str]:
    """The columns of shards or of a table whose values say what was embedded; what is there may be
    of another source than the pipeline's file names now."""
    return [TEXT, IMAGE] if schema is not None and has_images(schema) else [TEXT]
