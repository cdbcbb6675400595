"""A candidate for a release, and what is gathered of it: one pass over embeddings and chunks, one
over the table, then a search for each query as a user would make it."""

import itertools
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedding_pipelines.allocators import return_memory
from embedding_pipelines.compression.base import CodecChain, code_width
from embedding_pipelines.embedding.budget import BudgetTracker
from embedding_pipelines.embedding.cache import IN_MEMORY, EmbeddingCache
from embedding_pipelines.embedding.embed import embed, embed_all
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.files import delete, list_files, read_json, write_atomic, write_json
from embedding_pipelines.metrics.drift import Sketch
from embedding_pipelines.metrics.evidence import Evidence, Search
from embedding_pipelines.metrics.health import SHORT_TOKENS, DistinctCount
from embedding_pipelines.metrics.neighbours import TIES, ExactSearch, K
from embedding_pipelines.preprocessing.tokens import unknown_id
from embedding_pipelines.progress import Silent
from embedding_pipelines.providers.base import NORM_TOLERANCE, InputType
from embedding_pipelines.quality.queries import (
    KnownItemQuery,
    Qrels,
    has_vector,
    known_item_queries,
    read_pairs,
    read_qrels,
)
from embedding_pipelines.ranking import (
    Filter,
    Query,
    as_numbers,
    encode_queries,
    find,
    nearest_of_each,
    rows_needed,
)
from embedding_pipelines.releases import Release, read_releases, search_alike
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import IMAGE, TEXT, URI, VECTOR, digest
from embedding_pipelines.spec.pipeline import partition_of
from embedding_pipelines.storage.warehouse import Manifest, PipelineFolder
from embedding_pipelines.stores.base import Table
from embedding_pipelines.vectors import Vectors, to_matrix

QRELS_K = 100  # chunks that a query with relevance judgements asks for
SAMPLE = 5_000  # vectors that are compared with one another
NEIGHBOURS = 128  # chunks whose nearest other is looked for, and queries that test an index
TIMED = 32  # known items that are searched one by one, so that a search can be timed
ANSWERS = 10  # documents that are kept with a query, the most relevant first
GROWTH = 1.25  # of the table, from which on known items may come later


@dataclass(kw_only=True)
class Candidate(Evidence):
    """A table version that may be released, what its searches need, and what was gathered of it."""

    run: Run
    codec: CodecChain
    table: Table
    name: str  # of the table
    version: int
    rows: int
    has_index: bool
    source_rows: int  # that were read from the source's files
    source_files: int = 0
    rejected_records: int = 0
    live: Release | None
    budget: BudgetTracker  # what the checks may cost
    # Known items, with float32[n, d] of their queries.
    items: list[KnownItemQuery] = field(default_factory=list)
    queries: Vectors = field(init=False)
    judgements: Qrels | None = None
    has_judged_document: bool = False  # in the table
    # Faults by name, and how many vectors have them.
    faults: Counter[str] = field(default_factory=Counter)
    rejected: list[str] = field(default_factory=list)  # ids of the chunks without a vector
    rejected_documents: int = 0  # of whose chunks none is in the table
    duplicate_rows: int = 0  # chunk ids that came before
    misplaced_documents: int = 0  # in another partition than their id says
    # Some chunks: their texts, and their codes in the table.
    texts: dict[str, str] = field(default_factory=dict)
    images: dict[str, tuple[str, str]] = field(default_factory=dict)  # of these: digest and file
    codes: dict[str, Vectors] = field(default_factory=dict)
    collected: dict[str, Any] = field(default_factory=dict)  # by check, for itself
    metrics: dict[str, float] = field(default_factory=dict)
    query_metrics: dict[str, dict[str, float]] = field(default_factory=dict)  # by metric, by query

    @property
    def has_only_grown(self) -> bool:
        """Whether it is the live release with much more data, so that there is more to find."""
        if self.live is None or self.rows <= self.live.rows * GROWTH:
            return False
        space = self.run.model.space.with_codec(self.codec.id)
        return space == self.live.space and search_alike(self.run.spec, self.live.spec)

    def embed(
        self,
        texts: Sequence[str],
        input_type: InputType,
        use_cache: bool = True,
        are_ours: bool = False,
    ) -> Vectors:
        """Vectors float32[len(texts), d] within the budget, rows of NaN for what the provider
        rejects. A text that is longer than the model reads is cut, and told unless it is none of
        the user's. Raises as `embed`."""
        cache, tell = self.run.cache if use_cache else None, self.run.progress.note
        if are_ours:
            tell = Silent().note
        return embed_all(
            texts,
            self.run.model,
            cache,
            input_type,
            self.budget,
            on_cut=lambda words: tell(f"What the checks embed was too long: {words}"),
        ).vectors

    def embed_chunks(self, names: Sequence[str]) -> Vectors:
        """As `embed`, of chunks that `texts` has: past the cache, of images if they have one."""
        images = [name for name in names if name in self.images]
        texts = [self.texts[name] for name in names if name not in self.images]
        vectors = np.empty((len(names), self.run.model.space.dimensions), np.float32)
        is_image = np.array([name in self.images for name in names], bool)
        vectors[~is_image] = self.embed(texts, "document", use_cache=False)
        if not images:
            return vectors
        digests, files = zip(*(self.images[name] for name in images), strict=True)
        rows = pa.RecordBatch.from_pydict(
            {TEXT: [""] * len(images), IMAGE: digests, URI: files, "tokens": [0] * len(images)}
        )
        cache, model = EmbeddingCache(IN_MEMORY), self.run.model
        with self.run.image_loader() as loader:
            (part,) = embed([rows], model, cache, "document", lambda _: None, loader=loader)
        vectors[is_image] = part.vectors
        return vectors

    def find(
        self,
        text: str,
        vector: Vectors,
        k: int,
        filter: Filter | None = None,
        near: pa.Table | None = None,
    ) -> pa.Table:
        """The rows that a user's search for a query finds; `near` as in `ranking.find`."""
        query, mode = Query(text, vector), self.run.spec.search.mode
        return find(self.table, self.codec, query, k, filter, self.version, mode, near=near)

    def nearest(self, vectors: Vectors, k: int) -> Iterator[pa.Table]:
        """What vectors alone find for each of float32[n, d], as many rows as a search for `k`
        takes."""
        most = rows_needed(k, self.run.spec.search.mode)
        return nearest_of_each(self.table, self.codec, vectors, most, self.version)


def gather(candidate: Candidate, chosen: Mapping[str, NDArray[np.int64]]) -> None:
    """All that takes a pass over the data. `chosen` are the rows, by partition and rising, whose
    text and code to keep. Raises as `embed`, and ConfigError for the files of `evaluation:`."""
    candidate.judgements = read_qrels(candidate.run)
    items = known_item_queries(candidate.run, candidate.run.spec.evaluation.known_items)
    queries = candidate.embed([item.query for item in items], "query")
    sound = has_vector(queries)
    candidate.items = list(itertools.compress(items, sound))
    candidate.queries = queries[sound]
    _read_embeddings(candidate, chosen)
    _read_table(candidate)


def search(candidate: Candidate) -> None:
    """What the table returns for each query, and what compression does to vectors. Raises as
    `gather`, and ConfigError if the relevance judgements are of no document in the table."""
    if candidate.sample is not None:
        candidate.decoded = candidate.codec.decode(candidate.codec.encode(candidate.sample))
    _search_known_items(candidate)
    _search_judged_queries(candidate)
    _embed_pairs(candidate)


def _read_embeddings(candidate: Candidate, chosen: Mapping[str, NDArray[np.int64]]) -> None:
    """The exact neighbours of the queries in the model's own space, and the vectors' figures."""
    run, label = candidate.run, candidate.run.spec.evaluation.label
    _count_unknown(candidate)
    cut_off = sum(entry.statistics["unseen_tokens"] for entry in _chunk_manifests(candidate))
    candidate.unseen_tokens, limit = cut_off, run.model.limits.max_tokens
    manifests = map(run.folder.embeddings.manifest, run.spec.partition_names)
    total = sum(manifest.rows for manifest in manifests if manifest)
    generator = np.random.default_rng(run.spec.seed)
    numbers = np.sort(generator.choice(total, min(total, SAMPLE), replace=False))
    exact, sketch = ExactSearch(candidate.queries, TIES * K), Sketch()
    near, near_ids, sample = ExactSearch(candidate.queries[:0], 2), list[str](), list[Vectors]()
    with DistinctCount() as distinct:
        for partition, ids, vectors, chunks in _blocks(candidate, chosen):
            if not near_ids:
                some = generator.choice(len(ids), min(len(ids), NEIGHBOURS), replace=False)
                near, near_ids = ExactSearch(vectors[some], 2), [ids[row] for row in some]
            exact.add(ids, vectors)
            near.add(ids, vectors)
            distinct.add_vectors(vectors)
            sketch.add(partition, ids, vectors)
            start, end = np.searchsorted(numbers, [candidate.vectors, candidate.vectors + len(ids)])
            rows = numbers[start:end] - candidate.vectors
            sample.append(vectors[rows])
            candidate.labels += chunks[label].take(pa.array(rows)).to_pylist() if label else []
            if not run.spec.source.has_images:  # of which captions are no part of the vector
                candidate.short_texts += pc.sum(
                    pc.less_equal(chunks["tokens"], SHORT_TOKENS)
                ).as_py()
            candidate.unseen_tokens += int(np.maximum(chunks["tokens"].to_numpy() - limit, 0).sum())
            candidate.vectors += len(ids)
        candidate.distinct = distinct.distinct
    candidate.exact = exact.result()
    if candidate.vectors:
        candidate.sketch = sketch
        candidate.sample = np.concatenate(sample)
        candidate.nearest_other = _nearest_other(near, near_ids)


def _count_unknown(candidate: Candidate) -> None:
    """The tokens of all chunks, but for special ones, and those that the model's vocabulary lacks;
    none where its tokenizer only estimates."""
    tokenizer = candidate.run.model.tokenizer
    if unknown_id(tokenizer) is None or candidate.run.spec.source.has_images:
        return
    statistics = [manifest.statistics for manifest in _chunk_manifests(candidate)]
    tokens, chunks, unknown = (
        sum(entry[name] for entry in statistics) for name in ("tokens", "chunks", "unknown_tokens")
    )
    special = tokenizer.num_special_tokens_to_add(is_pair=False)
    candidate.text_tokens, candidate.unknown_tokens = tokens - special * chunks, unknown


def _chunk_manifests(candidate: Candidate) -> list[Manifest]:
    run = candidate.run
    return run.folder.chunks.manifests(run.spec.partition_names)


def _blocks(
    candidate: Candidate, chosen: Mapping[str, NDArray[np.int64]]
) -> Iterator[tuple[str, list[str], Vectors, pa.RecordBatch]]:
    """Partition, chunk ids, vectors and chunks of all that have a sound vector; none where chunks
    and embeddings are not of one another or of the model. Faults are counted on the way."""
    run, space = candidate.run, candidate.run.model.space
    label = run.spec.evaluation.label
    for partition in run.spec.partition_names:
        numbers, done = chosen.get(partition, np.empty(0, np.int64)), 0
        contents = run.spec.source.content_columns if len(numbers) else []
        columns = list(dict.fromkeys(["tokens", *([label] if label else []), *contents]))
        chunk_batches = run.folder.chunks.read(partition, columns)
        for batch in run.folder.embeddings.read(partition, ["chunk_id", VECTOR]):
            mask = pc.is_valid(batch[VECTOR])
            candidate.rejected += batch["chunk_id"].filter(pc.invert(mask)).to_pylist()
            vectors = to_matrix(batch[VECTOR].filter(mask))
            norms = np.linalg.norm(vectors, axis=1)
            finite = np.isfinite(norms)
            off = np.abs(norms[finite] - 1) > NORM_TOLERANCE
            candidate.faults.update(
                vectors=len(vectors),
                not_finite=int((~finite).sum()),
                zero=int((norms == 0).sum()),
                not_normalized=int(off.sum()) if space.normalized else 0,
            )
            chunks = next(chunk_batches, None)
            if chunks is None or (len(chunks), vectors.shape[1]) != (len(batch), space.dimensions):
                continue
            start, end = np.searchsorted(numbers, [done, done + len(chunks)])
            rows, done = pa.array(numbers[start:end] - done), done + len(chunks)
            if len(rows):
                ids, texts = batch["chunk_id"].take(rows), chunks["text"].take(rows)
                candidate.texts |= zip(ids.to_pylist(), texts.to_pylist(), strict=True)
                if run.spec.source.has_images:
                    some = chunks.take(rows)
                    pairs = zip(some[IMAGE].to_pylist(), some[URI].to_pylist(), strict=True)
                    images = zip(ids.to_pylist(), pairs, strict=True)
                    candidate.images |= {name: pair for name, pair in images if pair[0]}
            if finite.any():
                sound = pa.array(finite)
                ids = batch["chunk_id"].filter(mask).filter(sound).to_pylist()
                yield partition, ids, vectors[finite], chunks.filter(mask).filter(sound)
        return_memory()  # Arrow keeps some of each file


def _nearest_other(near: ExactSearch, ids: list[str]) -> Vectors:
    """The cosine float32[n] of each vector with the nearest one of another id."""
    others = [
        max((score for name, score in zip(row, scores, strict=False) if name != own), default=-1.0)
        for own, row, scores in zip(ids, *near.result(), strict=True)
    ]
    return np.array(others, np.float32)


def _read_table(candidate: Candidate) -> None:
    """Ids, faults, the chosen rows' codes, and the exact nearest codes of the first queries."""
    codec, table, first = candidate.codec, candidate.table, candidate.queries[:NEIGHBOURS]
    width = table.schema(candidate.version).field(VECTOR).type.list_size
    fits = width == code_width(codec.dimensions, codec.dtype)
    exact: ExactSearch | None = None
    if candidate.has_index and codec.rescoring_codec is None and len(first) and fits:
        exact = ExactSearch(as_numbers(codec, encode_queries(codec, first)), TIES * K)
    chosen = pa.array(list(candidate.texts), pa.string())
    missing = {name.rpartition("#")[0] for name in candidate.rejected}
    judged = candidate.judgements.documents if candidate.judgements else set()
    number_of = {name: at for at, name in enumerate(candidate.run.spec.partition_names)}
    columns = ["chunk_id", "document_id", "partition", VECTOR]
    with DistinctCount() as chunks, DistinctCount() as documents:
        for batch in table.scan(columns, version=candidate.version):
            ids, codes = batch["chunk_id"].to_pylist(), to_matrix(batch[VECTOR])
            parts = (batch[name].to_pylist() for name in ("document_id", "partition"))
            places = dict(zip(*parts, strict=True))
            names = list(places)
            candidate.misplaced_documents += sum(
                partition_of(name, len(number_of)) != number_of.get(partition)
                for name, partition in places.items()
            )
            chunks.add_names(ids)
            documents.add_names(names)
            missing.difference_update(names)
            candidate.has_judged_document |= not judged.isdisjoint(names)
            finite = np.ones(len(ids), bool)
            if codec.dtype != "binary":  # of packed bits every pattern is sound, 0 too
                norms = np.linalg.norm(codes.astype(np.float32), axis=1)
                finite = np.isfinite(norms)
                faults = int((~finite | (norms == 0)).sum())
                candidate.faults.update(table_zero_or_not_finite=faults)
            if exact is not None:
                exact.add(list(itertools.compress(ids, finite)), as_numbers(codec, codes[finite]))
            for row in np.flatnonzero(pc.is_in(batch["chunk_id"], chosen).to_numpy(False)):
                candidate.codes[ids[row]] = codes[row].copy()
        candidate.documents = documents.distinct
        candidate.duplicate_rows = chunks.all - chunks.distinct
    candidate.exact_codes = exact.result() if exact else None
    candidate.rejected_documents = len(missing)


def _search_known_items(candidate: Candidate) -> None:
    """What each search returns, and how long it takes."""
    items, queries = candidate.items, candidate.queries
    searches = zip(items, queries, candidate.nearest(queries, K), strict=True)
    for number, (item, vector, near) in enumerate(searches):
        candidate.run.progress.update("checks", number, len(items), "searches")
        milliseconds = None
        if number < TIMED:  # one by one, as users search
            started = time.perf_counter()
            rows = candidate.find(item.query, vector, K)
            milliseconds = (time.perf_counter() - started) * 1000
        else:
            rows = candidate.find(item.query, vector, K, near=near)
        columns = (rows[name].to_pylist() for name in ("chunk_id", "document_id", "score"))
        hits = list(zip(*columns, strict=True))
        copies = rows["document_id"].filter(pc.equal(rows["text"], item.text)).to_pylist()
        candidate.searches.append(
            Search(
                *(item.id, item.document_id, hits, milliseconds, near["chunk_id"].to_pylist()[:K]),
                frozenset(copies),
            )
        )


def _search_judged_queries(candidate: Candidate) -> None:
    qrels = candidate.judgements
    if qrels is None:
        return
    if not candidate.has_judged_document:
        if candidate.run.spec.evaluation.qrels is None:
            return  # what people rated has left the source
        raise ConfigError(
            f"evaluation.qrels: none of its {len(qrels.documents)} documents, such as "
            f"{min(qrels.documents)!r}, is in the table. Write the ids that `source.id` names."
        )
    vectors = candidate.embed(list(qrels.queries.values()), "query")
    sound = has_vector(vectors)
    queries, vectors = list(itertools.compress(qrels.queries.items(), sound)), vectors[sound]
    nearest = candidate.nearest(vectors, QRELS_K)
    for (name, text), vector, near in zip(queries, vectors, nearest, strict=True):
        rows = candidate.find(text, vector, QRELS_K, near=near)
        pairs = zip(rows["document_id"].to_pylist(), rows["score"].to_pylist(), strict=True)
        candidate.rankings[name] = dict(reversed(list(pairs)))  # the nearest chunk of a document
    candidate.qrels = qrels.relevance
    candidate.query_ids = {
        name: digest(text.encode(), str(sorted(qrels.relevance[name].items())).encode()).hex()
        for name, text in qrels.queries.items()
    }


def _embed_pairs(candidate: Candidate) -> None:
    pairs = read_pairs(candidate.run)
    if not pairs:
        return
    texts = [left for left, _, _ in pairs] + [right for _, right, _ in pairs]
    left, right = np.split(candidate.embed(texts, "document"), 2)
    sound, codec = has_vector(left) & has_vector(right), candidate.codec
    left, right = (codec.decode(codec.encode(side[sound])) for side in (left, right))
    scores = [score for _, _, score in pairs]
    candidate.pairs = left, right, list(itertools.compress(scores, sound))


def keep_figures(candidate: Candidate) -> None:
    """Keep queries' figures and the sketch for later candidates; delete those of gone releases."""
    folder, judgements = candidate.run.folder, candidate.judgements
    folder.quality.mkdir(parents=True, exist_ok=True)
    names = {f"{entry.table}-{entry.version}" for entry in read_releases(folder).releases}
    for path in list_files(folder.quality, "*-*-*.*"):
        if path.stem not in names:
            delete(path)
    queries = (
        [
            {
                "id": name,
                "text": text,
                "from": "",
                "figure": candidate.query_ids.get(name, name),  # its name among the figures
                "answers": judgements.answers(name)[:ANSWERS] if judgements else [],
            }
            for name, text in (judgements.queries.items() if judgements else ())
        ]
        + [
            {"id": item.id, "text": item.query, "from": item.document_id}
            for item in candidate.items
        ]
    )
    name = f"{candidate.name}-{candidate.version}"
    write_json(folder.queries, {"queries": queries})
    write_json(folder.quality / f"{name}.json", {"per_query": candidate.query_metrics})
    if candidate.sketch is not None:
        write_atomic(folder.quality / f"{name}.npz", candidate.sketch.to_bytes())


def query_figures(folder: PipelineFolder, release: Release) -> dict[str, dict[str, float]]:
    """A release's figures by metric and query; empty if none were kept."""
    path = folder.quality / f"{release.table}-{release.version}.json"
    figures: dict[str, dict[str, float]] = (read_json(path) or {}).get("per_query", {})
    return figures


def sketch_of(run: Run, release: Release) -> Sketch | None:
    """The sketch of a release's vectors; None if there is none that can be read."""
    path = run.folder.quality / f"{release.table}-{release.version}.npz"
    try:
        return Sketch.from_bytes(path.read_bytes())
    except Exception:  # noqa: BLE001  # of zipfile and numpy, whatever damaged bytes make of it
        return None
