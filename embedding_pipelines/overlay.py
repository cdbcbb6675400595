"""What was pushed to a pipeline and is in no release yet, laid over the release that is searched.

The documents of the log behind the release's number become rows by the code that makes those of a
table: cleaned, cut, embedded through the embedding cache and encoded. They are searched as a table
of the store, in memory, and merged with the release's rows, of which those are hidden whose
documents were put anew or deleted. A run that has read the log makes a release of a higher number:
then there is nothing left to lay over it, and the searches find the same.
"""

import contextlib
import functools
import itertools
import json
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedding_pipelines.access import Permitted, Visible
from embedding_pipelines.codes import encoded, schema_of
from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.embedding.embed import embed
from embedding_pipelines.errors import ReleaseError
from embedding_pipelines.preprocessing.base import Counts
from embedding_pipelines.preprocessing.chunk import Cutter
from embedding_pipelines.providers.base import EmbeddingModel
from embedding_pipelines.ranking import nearest
from embedding_pipelines.releases import Release, live_release
from embedding_pipelines.schemas import DIGEST, DOCUMENT_DIGEST, TABLE_KEY, TABLE_TYPES, TEXT
from embedding_pipelines.sources.base import ReadLog, Rejection, SourceFile
from embedding_pipelines.sources.push import Push
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.spec.pipeline import PipelineSpec, partition_of
from embedding_pipelines.storage.forgotten import read_forgotten
from embedding_pipelines.storage.pushed import Change, PushedWatch, Segment, pushed_log
from embedding_pipelines.storage.warehouse import PipelineFolder, Warehouse
from embedding_pipelines.stores.base import Filter, Searchable, Store, Table
from embedding_pipelines.vectors import Distance, Vectors, checksums, to_column

PLACE = SourceFile("pushed", 0, (), Path())  # of documents that no file holds yet
READER_SECONDS = 5.0  # that a search gives a bucket which does not answer: there is the copy
OWN_VERSION = 1  # of a table in memory
# A table in memory is made anew for each change, and of 5,000 texts it takes 0.15 s. So few rows beside
# many have a table of their own, until they are more than this share of them.
MANY_ROWS, FEW_SHARE = 500, 1 / 8
UNRELEASED = 0  # the number of what is searched before the first release


@dataclass(frozen=True)
class Rows:
    """Documents as rows of a table, and those of them, or of their chunks, that are not among
    these, with the reasons."""

    table: pa.Table
    ids: list[str]  # of the documents that can be read, empty ones too, in their order
    rejected: list[Rejection] = field(default_factory=list)  # `row`: from 0, as they were given
    without_vector: dict[str, str] = field(
        default_factory=dict
    )  # by document, the provider's words
    embedded: int = 0  # texts that reached the model


class RowMaker:
    """Makes rows of a release's table out of documents as they are pushed."""

    def __init__(
        self, warehouse: Warehouse, release: Release, model: EmbeddingModel, codec: CodecChain
    ) -> None:
        self._release, self._model, self._codec = release, model, codec
        self._cache, self._tables = warehouse.cache, warehouse.tables
        spec = release.spec
        self.source = Push.of(spec.source)
        self.schema = schema_of(spec.store, codec, spec.metadata_types, release.space.id)

    @functools.cached_property
    def _cutter(self) -> Cutter:
        limit = self._model.limits.max_tokens
        return self._release.spec.preprocessing.cutter(self._model.tokenizer, limit)

    def released(self, ids: Collection[str]) -> set[str]:
        """Those of these documents that have rows in the release."""
        release, spec = self._release, self._release.spec
        if release.number == UNRELEASED:
            return set()
        table, names = spec.store.table(self._tables, release.table), spec.partition_names
        own = {names[partition_of(name, len(names))] for name in ids}
        return {
            name
            for partition in sorted(own)
            for batch in table.scan(["document_id"], partition, release.version)
            for name in batch["document_id"].to_pylist()
        }.intersection(ids)

    def texts(self, records: Sequence[Mapping[str, Any]]) -> list[str]:
        """The texts that `rows` embeds, each once."""
        documents, _, _ = read_records(self.source, records)
        chunks = self._chunks(documents)
        return [*dict.fromkeys(text for batch in chunks for text in batch["text"].to_pylist())]

    def _chunks(self, documents: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return self._release.spec.preprocessing.process(documents, self._cutter, Counts())

    def rows(self, records: Sequence[Mapping[str, Any]]) -> Rows:
        """The rows of records, by the names of the source's columns. Raises ProviderError if the
        model fails."""
        spec, codec = self._release.spec, self._codec
        documents, ids, rejected = read_records(self.source, records)
        chunks = self._chunks(documents)
        batches, without, count = list[pa.RecordBatch](), dict[str, str](), 0
        cache = EmbeddingCache(self._cache)
        for part in embed(chunks, self._model, cache, "document", lambda _: None):
            count += part.usage.embedded
            owners = part.rows["document_id"].to_pylist()
            without |= {owners[row]: reason for row, reason in part.rejected.items()}
            mask = np.isin(np.arange(part.rows.num_rows), list(part.rejected), invert=True)
            rows, vectors = part.rows.filter(pa.array(mask)), part.vectors[mask]
            if not rows.num_rows:
                continue
            names = spec.partition_names
            partitions = [
                names[partition_of(owners[at], len(names))] for at in np.flatnonzero(mask)
            ]
            values: dict[str, pa.Array] = {
                "partition": pa.array(partitions, pa.string()),
                "vector_checksum": pa.array(checksums(to_column(vectors)), pa.int64()),
                **encoded(spec.store, codec, vectors),
            }
            kinds = spec.model.metadata_types  # of images alone, and these are texts
            values |= {
                name: pa.nulls(rows.num_rows, TABLE_TYPES[kind]) for name, kind in kinds.items()
            }
            columns = [values[name] if name in values else rows[name] for name in self.schema.names]
            batches.append(pa.RecordBatch.from_arrays(columns, schema=self.schema))
        table = pa.Table.from_batches(batches, self.schema)
        return Rows(table, ids, rejected, without, count)


def read_records(
    source: Push, records: Sequence[Mapping[str, Any]]
) -> tuple[list[pa.RecordBatch], list[str], list[Rejection]]:
    """Documents of `stored_documents_schema`, without digests, their ids, and what of the records
    can be no document."""
    rejected = list[Rejection]()
    lines = ((at, to_json(record)) for at, record in enumerate(records))
    batches = [
        batch.append_column(pa.field(DOCUMENT_DIGEST, DIGEST), pa.nulls(batch.num_rows, DIGEST))
        for batch in source.documents(lines, PLACE, ReadLog(reject=rejected.append))
    ]
    ids = [name for batch in batches for name in batch["document_id"].to_pylist()]
    return batches, ids, rejected


def to_json(record: Mapping[str, Any]) -> bytes:
    """Raises UnicodeEncodeError for half a character, TypeError for what is no JSON."""
    return json.dumps(record, ensure_ascii=False).encode()


def unreleased(spec: PipelineSpec, model: EmbeddingModel) -> Release:
    """What is searched before the first release: nothing but what was pushed, as the pipeline file
    says, with vectors as the model gives them, for no codec is fitted yet."""
    codec = CodecChain([], model.space.dimensions)
    return Release(
        number=UNRELEASED,
        table="",
        version=1,
        rows=0,
        space=model.space.with_codec(codec.id),
        codec="",
        cleaning=spec.preprocessing.clean.version,
        spec=spec.model_copy(update={"compression": ()}),
        released_at=datetime.fromtimestamp(0, UTC),
        checks={},
    )


def searched_release(warehouse: Warehouse, folder: PipelineFolder) -> Release:
    """The release that searches read; before the first one, if something was pushed, what is
    searched in its place. Raises ReleaseError without either."""
    try:
        return live_release(folder)
    except ReleaseError:
        name = folder.folder.name
        log = pushed_log(warehouse, name, READER_SECONDS)
        log.fetch()
        if not log.last():
            raise
        spec = find_pipeline(name, warehouse.home)
        with contextlib.closing(spec.model.open(warehouse.home, folder.model.parent)) as model:
            return unreleased(spec, model)


def codec_of(folder: PipelineFolder, release: Release) -> CodecChain:
    """Raises CompressionError for one that is lost or damaged."""
    if release.number == UNRELEASED:
        return CodecChain([], release.space.dimensions)
    return CodecChain.load(folder.codecs / release.codec)


def table_of(warehouse: Warehouse, release: Release, codec: CodecChain) -> Table:
    """A release's own table, without what was pushed since."""
    store = release.spec.store
    if release.number == UNRELEASED:
        metadata = release.spec.metadata_types
        return store.in_memory(schema_of(store, codec, metadata, release.space.id).empty_table())
    return store.table(warehouse.tables, release.table)


class Overlay:
    """The rows that are laid over one release; searches of several threads share it."""

    def __init__(
        self, warehouse: Warehouse, release: Release, model: EmbeddingModel, codec: CodecChain
    ) -> None:
        self._release = release
        self._store = release.spec.store
        self._forgotten = warehouse.forgotten / f"{release.spec.name}.json"
        self._log = pushed_log(warehouse, release.spec.name, READER_SECONDS)
        self._watch = PushedWatch(self._log)
        self._maker = RowMaker(warehouse, release, model, codec)
        self._lock = threading.Lock()
        self._segments = list[Segment]()
        self._last = release.pushed  # the number of the newest change that is laid over it
        self._parts = self._no_parts = _Parts(pa.Table.from_batches([], self._maker.schema))
        self._view = self._nothing = _View(self._store, None)

    def over(self, table: Table) -> Searchable:
        """A release's table as it looks with all that was pushed until now. Raises StoreError for a
        damaged log."""
        with self._lock:
            segments = self._watch.segments()
            if segments is not None and segments != self._segments:
                try:
                    self._lay(segments)
                except BaseException:
                    self._watch.look_again()
                    raise
            view = self._view
        return Overlaid(table, view) if view.hidden else table

    def notes(self, visible: Visible | None = None) -> list[str]:
        """What is to be said of searches with it; of documents, what those say who see them."""
        return [*filter(None, [self._watch.problem]), *self._view.notes(visible)]

    def _lay(self, segments: list[Segment]) -> None:
        """Take in what the segments say now."""
        if _erasures(segments) != _erasures(self._segments):
            self._last, self._view = self._release.pushed, self._nothing
            self._parts = self._no_parts
        changes = self._log.changes(self._last)
        last = max((number for number, _ in changes), default=self._last)
        words = {change.id: change for _, change in changes}
        self._view = self._view_with(words)
        self._last, self._segments = last, segments

    def _view_with(self, words: Mapping[str, Change]) -> "_View":
        if not words:
            return self._view
        forgotten = read_forgotten(self._forgotten)
        hidden, unread = set(self._view.hidden), dict(self._view.unread)
        records = dict[str, Mapping[str, Any]]()
        for name, change in words.items():
            hidden.discard(name)
            unread.pop(name, None)
            if change.kind == "withdraw" or (forgotten and forgotten.has("id", name)):
                continue
            hidden.add(name)
            if change.record is not None:
                records[name] = change.record
        rows, names = self._maker.rows(list(records.values())), list(records)
        unread |= {names[rejection.row]: rejection.reason for rejection in rows.rejected}
        unread |= rows.without_vector
        language = self._release.spec.search.text_index
        self._parts = self._parts.changed(words.keys(), rows.table, self._store, language)
        return _View(self._store, language, frozenset(hidden), self._parts.own, unread)


@dataclass(frozen=True)
class _Own:
    """Rows, also as a table in memory, and the documents whose rows have been replaced since."""

    table: Table
    rows: pa.Table
    replaced: frozenset[str] = frozenset()

    @functools.cached_property
    def hidden_ids(self) -> pa.Array:
        return pa.array(sorted(self.replaced), pa.string())


@dataclass(frozen=True)
class _Parts:
    """The rows that are in the log alone, in two tables: many that stay, and few that change."""

    many: pa.Table
    few: pa.Table | None = None
    own: tuple[_Own, ...] = ()  # of `many`, if it has rows, then of `few`

    def changed(
        self, ids: Collection[str], rows: pa.Table, store: Store, language: str | None
    ) -> "_Parts":
        """With these rows in place of all of the documents."""
        few = rows if self.few is None else pa.concat_tables([_without(self.few, ids), rows])
        own = self.own[0] if self.many.num_rows else None
        replaced = frozenset(ids) | (own.replaced if own else frozenset())
        if (
            own is None
            or self.many.num_rows < MANY_ROWS
            or (few.num_rows > self.many.num_rows * FEW_SHARE)
        ):
            many = pa.concat_tables([_without(self.many, replaced), few])
            tables = [_Own(store.in_memory(many, language), many)] if many.num_rows else []
            return _Parts(many, None, tuple(tables))
        tables = [_Own(own.table, own.rows, replaced)]
        if few.num_rows:
            tables.append(_Own(store.in_memory(few, language), few))
        return _Parts(self.many, few, tuple(tables))


def _without(rows: pa.Table, ids: Collection[str]) -> pa.Table:
    return rows.filter(pc.invert(pc.is_in(rows["document_id"], pa.array([*ids], pa.string()))))


@dataclass(frozen=True)
class _View:
    """What is laid over a release at one moment."""

    store: Store
    language: str | None  # of the texts, if they have a full-text index
    hidden: frozenset[str] = frozenset()  # ids of documents whose rows in the release are gone
    own: tuple[_Own, ...] = ()  # rows that are in the log alone
    unread: Mapping[str, str] = field(default_factory=dict)  # documents that have no rows, and why

    def notes(self, visible: Visible | None) -> list[str]:
        unread = {
            name: reason
            for name, reason in self.unread.items()
            if visible is None or name in visible
        }
        if not unread:
            return []
        name, reason = next(iter(unread.items()))
        return [
            f"{len(unread)} of the documents that were pushed cannot be searched before a run, "
            f"such as {name!r}: {reason}"
        ]

    @functools.cached_property
    def hidden_ids(self) -> pa.Array:
        return pa.array(sorted(self.hidden), pa.string())


class Overlaid:
    """A table with a view over it."""

    def __init__(self, table: Table, view: _View) -> None:
        self._table, self._view = table, view

    def hides(self, document_id: str) -> bool:
        """Whether a document's rows in the release are gone."""
        return document_id in self._view.hidden

    def pushed(self, document_id: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The rows of a document that are in the log alone."""
        for own in self._view.own:
            if document_id not in own.replaced:
                is_own = pc.equal(own.rows["document_id"], document_id)
                yield own.rows.filter(is_own).select(list(columns))

    def search(
        self,
        vector: NDArray[np.generic],
        k: int,
        metric: Distance,
        filter: Filter | None,
        version: int,
        rescoring: bool = False,
        names: Mapping[str, str] | None = None,
        only: Sequence[str] | None = None,
    ) -> pa.Table:
        """As `Table.search`."""

        def rows_of(table: Table, k: int, version: int) -> pa.Table:
            return table.search(vector, k, metric, filter, version, rescoring, names, only)

        rows = _visible(lambda k: rows_of(self._table, k, version), k, self._view.hidden_ids)
        for mine in self._own(rows_of, k):
            rows = _best(rows, mine, ("_distance", "ascending"), k)
        return rows

    def _own(self, rows_of: Callable[[Table, int, int], pa.Table], k: int) -> Iterator[pa.Table]:
        """The first `k` rows of each table in memory."""
        for own in self._view.own:

            def search(k: int, table: Table = own.table) -> pa.Table:
                return rows_of(table, k, OWN_VERSION)

            yield _visible(search, k, own.hidden_ids)

    def search_text(
        self,
        text: str,
        k: int,
        filter: Filter | None,
        version: int,
        names: Mapping[str, str] | None = None,
        only: Sequence[str] | None = None,
    ) -> pa.Table:
        """As `Table.search_text`. How rare a word is among a few rows says nothing: what was pushed
        is scored together with the table's best, and brought to the scale of their scores."""

        def rows_of(table: Table, k: int, version: int) -> pa.Table:
            return table.search_text(text, k, filter, version, names, only)

        rows = _visible(lambda k: rows_of(self._table, k, version), k, self._view.hidden_ids)
        parts = [part for part in self._own(rows_of, k) if part.num_rows]
        if not parts:
            return rows
        mine = pa.concat_tables(parts)
        pairs = [pair for each in (rows, mine) for pair in _pairs(each, TEXT)]
        scores = self._view.store.score_texts(text, dict(pairs), self._view.language)
        scales = [score / scores[name] for name, score in _pairs(rows, "_score") if name in scores]
        scale = float(np.median(scales)) if scales else 1.0
        own_scores = [scale * scores.get(name, 0.0) for name in mine[TABLE_KEY].to_pylist()]
        at = mine.column_names.index("_score")
        mine = mine.set_column(at, "_score", pa.array(own_scores, pa.float32()))
        return _best(rows, mine, ("_score", "descending"), k)

    def nearest(
        self,
        near: pa.Table,
        codec: CodecChain,
        vector: Vectors,
        k: int,
        visible: Visible | None = None,
    ) -> pa.Table | None:
        """The `k` nearest rows, by `score`, out of the `k` nearest ones of the table alone, or more;
        None where too many of these are hidden to tell. `visible`: no others of those in the log."""
        view = self._view
        rows = near.filter(pc.invert(pc.is_in(near["document_id"], view.hidden_ids)))
        if rows.num_rows < k <= near.num_rows:
            return None

        def rows_of(table: Table, k: int, version: int) -> pa.Table:
            own = table if visible is None else Permitted(table, visible)
            return nearest(own, codec, vector, k, None, version)

        for mine in self._own(rows_of, k):
            rows = _best(rows, mine, ("score", "descending"), k)
        return rows.slice(0, k)


def _visible(rows_of: Callable[[int], pa.Table], k: int, hidden: pa.Array) -> pa.Table:
    """The first `k` rows that are not those of hidden documents."""
    for more in itertools.count():
        rows = rows_of(k << more)
        visible = rows.filter(pc.invert(pc.is_in(rows["document_id"], hidden)))
        if visible.num_rows >= k or rows.num_rows < k << more:
            return visible.slice(0, k)
    raise AssertionError


def _pairs(rows: pa.Table, column: str) -> Iterator[tuple[str, Any]]:
    return zip(rows[TABLE_KEY].to_pylist(), rows[column].to_pylist(), strict=True)


def _best(rows: pa.Table, mine: pa.Table, order: tuple[str, str], k: int) -> pa.Table:
    """The best of both; of equals those of `rows`."""
    both = pa.concat_tables([rows, mine.select(rows.column_names).cast(rows.schema)])
    return both.take(pc.sort_indices(both, sort_keys=[order])).slice(0, k)


def _erasures(segments: Iterable[Segment]) -> list[Segment]:
    """The segments out of which something was erased."""
    return [segment for segment in segments if segment.edition]
