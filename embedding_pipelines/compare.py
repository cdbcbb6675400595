"""compare: which model finds most in a pipeline's own data, and what each would cost.

All models embed the same sample of its chunks, through the cache, and answer the same queries by
exact search. Nothing of the pipeline changes; what a model has embedded is not paid for again when
the pipeline takes it.
"""

import heapq
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedding_pipelines.embedding.budget import BudgetTracker, Usage
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.embedding.embed import embed_all
from embedding_pipelines.embedding.texts import ReadableTexts, prepare
from embedding_pipelines.errors import ConfigError, counted
from embedding_pipelines.files import temporary_folder, write_json
from embedding_pipelines.metrics.confidence import lower_bound
from embedding_pipelines.metrics.neighbours import ExactSearch, K
from embedding_pipelines.metrics.retrieval import values_by_query
from embedding_pipelines.progress import Progress
from embedding_pipelines.providers.base import InputType, ProviderOptions
from embedding_pipelines.providers.common.http import ServiceOptions
from embedding_pipelines.quality.queries import (
    KnownItemQuery,
    Qrels,
    has_vector,
    known_item_queries,
    read_qrels,
)
from embedding_pipelines.remote import refresh
from embedding_pipelines.run import Run, line_of
from embedding_pipelines.schemas import digest
from embedding_pipelines.spec.load import parse_pipeline
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.steps.chain import step_named
from embedding_pipelines.steps.copy import copy_with_chunks
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines.stores.survey import Columns, open_table
from embedding_pipelines.vectors import Vectors

DOCUMENTS = 2_000
DEPTH = 100  # documents that a query ranks, of which R@100 is measured
CHUNKS_OF_A_DOCUMENT = (
    4  # so many times DEPTH chunks are query_texts for, as a document may have several
)
SIDE = 0.975  # each side of an interval of 95%
TIMED_TEXTS = 64  # that a local model embeds anew where the cache had all
TABLE_ROWS, TABLE_ITEMS = "rows.parquet", 500  # of a foreign table: its texts, and known items
PAGE_ROWS = 8_192  # of such a table that are read at once


@dataclass(frozen=True)
class Figure:
    """A mean over queries, with bounds that hold with 95% confidence for any values in [0, 1] (see
    `metrics/confidence.py`); of a difference in [-1, 1]."""

    mean: float
    low: float
    high: float
    queries: int


@dataclass
class ModelResult:
    """One model beside the others. The first is the pipeline's own, which `differences` are to."""

    model: str
    dimensions: int
    bytes_per_vector: int  # float32, before any compression
    tokens: int  # of the sample and the queries, by the model's tokenizer, as it reads them
    tokens_sent: int  # those that the cache lacked
    usd: float | None  # of these; 0 on this machine, None if the price is unknown
    usd_corpus: float | None  # of all the pipeline's chunks
    tokens_unseen: int  # of the sample: what the model does not read, since its limit is lower
    rejected: int = 0  # texts that the model gave no vector
    tokens_per_second: float | None = None  # here; None where nobody measured it
    figures: dict[str, Figure] = field(default_factory=dict)
    differences: dict[str, Figure] = field(default_factory=dict)


@dataclass
class Comparison:
    """What was compared: a sample, unless it holds all documents."""

    pipeline: str
    documents: int
    all_documents: int
    chunks: int
    all_chunks: int
    judged_queries: int
    known_items: int
    models: list[ModelResult] = field(default_factory=list)


@dataclass(frozen=True)
class _Sample:
    """Chunks of some documents, in the order of their partitions, and the queries to them."""

    documents: list[str]  # of each chunk
    texts: list[str]
    tokens: int  # by the tokenizer of the pipeline's own model
    all_documents: int
    all_chunks: int
    all_tokens: int
    judged: Qrels | None
    items: list[KnownItemQuery]

    @property
    def queries(self) -> list[str]:
        """The texts of all queries, judged ones first."""
        judged = [self.judged.queries[name] for name in self.judged_ids] if self.judged else []
        return [*judged, *(item.query for item in self.items)]

    @property
    def judged_ids(self) -> list[str]:
        return sorted(self.judged.queries) if self.judged else []


def compare_models(
    run: Run, models: Sequence[ProviderOptions], documents: int = DOCUMENTS
) -> Comparison:
    """Measure the pipeline's own model and others on a sample of `documents` documents: those of
    its queries, and others as chance has it, always the same.

    The budget of the pipeline's file holds for each model. Raises as `embed` and as the steps
    `documents` and `chunks`; ConfigError for a model of code that nobody vouched for, for a
    pipeline of images or without queries, and for a key or file that a model needs.
    """
    if run.spec.source.has_images:
        raise ConfigError(
            f"Pipeline {run.spec.name!r} is of images, and models are compared by texts alone. "
            f"Copy its file under another name with the other model, and run both."
        )
    every = [run.spec.model, *(options for options in models if options != run.spec.model)]
    if len(every) == 1:
        raise ConfigError(
            f"{_name(run.spec.model)} is the model of pipeline {run.spec.name!r}, which is always "
            "measured. Name another beside it."
        )
    for options in every:
        _require_usable(run, options)
    refresh(run.warehouse, run.spec.name)
    with copy_with_chunks(run) as copy:
        return _compare(run, copy, every, _take(copy, documents))


def compare_table(
    home: Path,
    path: Path,
    models: Sequence[ProviderOptions],
    progress: Progress,
    documents: int = DOCUMENTS,
) -> Comparison:
    """Measure models on texts of a LanceDB table, whoever made it, by known items; and the table's
    own vectors, as each of the models finds them whose vectors are as long. Nothing is written but
    to the cache.

    Raises ConfigError for no table, one without texts, or texts too short for known items; else as
    `compare_models`.
    """
    with temporary_folder(Path(gettempdir()), "embedding-pipelines-table-") as folder:
        rows, stored = _rows_of(path, documents)
        pq.write_table(pa.table(rows.texts), folder / TABLE_ROWS)
        spec = _of_table(path, folder).model_copy(update={"model": models[0]})
        with Run(spec, Warehouse(home, folder), progress) as run:
            for options in models:
                _require_usable(run, options)
            for name in ("documents", "chunks"):
                for _ in step_named(name).work(run, spec.partition_names):
                    pass
            sample = _take(run, documents)
            scale = rows.total / sample.all_documents
            sample = replace(
                sample,
                all_documents=rows.total,
                all_chunks=rows.total,
                all_tokens=round(sample.all_tokens * scale),
            )
            return _compare(run, run, list(dict.fromkeys(models)), sample, stored)


def _compare(
    run: Run,
    copy: Run,
    every: Sequence[ProviderOptions],
    sample: _Sample,
    stored: Mapping[str, Vectors] | None = None,
) -> Comparison:
    """`copy` has the chunks; `stored`: vectors by document, of a table that nobody else knows."""
    result = Comparison(
        run.spec.name,
        documents=len(set(sample.documents)),
        all_documents=sample.all_documents,
        chunks=len(sample.texts),
        all_chunks=sample.all_chunks,
        judged_queries=len(sample.judged_ids),
        known_items=len(sample.items),
    )
    cache, values = EmbeddingCache(run.warehouse.cache), list[dict[str, dict[str, float]]]()

    def add(row: ModelResult, vectors: Vectors, queries: Vectors) -> None:
        by_query = _values(sample, vectors, queries)
        row.figures = {name: _figure(list(each.values())) for name, each in by_query.items()}
        row.differences = _differences(by_query, values[0]) if values else {}
        result.models.append(row)
        values.append(by_query)

    for number, options in enumerate(every):
        is_own = number == 0 and (not options.trains or _is_trained(copy))
        warehouse = copy.warehouse if is_own else _beside(copy, number)
        with Run(run.spec, warehouse, run.progress, options=options) as own:
            budget = BudgetTracker.of(run.spec.budget, options)
            try:
                row, vectors, queries = _measure(own, sample, cache, budget)
            finally:
                if options.price:
                    run.add_usage(Usage(billed_tokens=budget.billed), options.price)
        add(row, vectors, queries)
        if stored:
            own_vectors = np.stack([stored[name] for name in sample.documents])
            if own_vectors.shape[1] == row.dimensions:
                add(_of_stored(row, own_vectors), own_vectors, queries)
    return result


@dataclass(frozen=True)
class _Rows:
    """Some rows of a foreign table."""

    texts: dict[str, list[str]]  # by column: id, which is the row's number, and text
    total: int  # rows of the table


def _rows_of(path: Path, most: int) -> tuple[_Rows, dict[str, Vectors]]:
    """Rows with texts, as chance has it, always the same; and their vectors float32[d] by id, NaN for
    none, if all are as long."""
    texts, stored, size = dict[str, str](), dict[str, Any](), 0
    with open_table(path) as table:
        columns = Columns.of(table.schema)
        if columns.text is None:
            raise ConfigError(f"{path} has no column of texts, so there is nothing to embed.")
        numbers = (
            digest(str(row).encode())[:8] + row.to_bytes(8, "big") for row in range(table.rows)
        )
        chosen = {int.from_bytes(each[8:], "big") for each in heapq.nsmallest(most, numbers)}
        kinds = {name: table.schema.field(name).type.value_type for name in columns.vectors}
        vectors = [name for name in kinds if pa.types.is_floating(kinds[name])][:1]
        names, first = [columns.text, *vectors], 0
        for page in table.pages(names, PAGE_ROWS):
            for row in (row for row in range(page.num_rows) if first + row in chosen):
                text = page.column(columns.text)[row].as_py()
                if text is None or not text.strip():
                    continue
                name = str(first + row)
                texts[name] = text
                if vectors:
                    vector = page.column(vectors[0])[row].as_py()
                    stored[name] = vector
                    size = max(size, len(vector or ()))
            first += page.num_rows
        total = table.rows
    rows = _Rows({"id": list(texts), "text": list(texts.values())}, total)
    empty = np.full(size, np.nan, np.float32)
    return rows, {
        name: empty if vector is None or len(vector) != size else np.array(vector, np.float32)
        for name, vector in stored.items()
    }


def _of_table(path: Path, folder: Path) -> PipelineSpec:
    """A pipeline of the rows that were written, whatever its model."""
    values = {
        "source": {"kind": "parquet", "path": str(folder / TABLE_ROWS), "id": "id", "text": "text"},
        "preprocessing": {"chunk": None},
        "model": {"provider": "hashing"},
        "evaluation": {"known_items": TABLE_ITEMS},
    }
    return parse_pipeline(json.dumps(values), "table", str(path))


def _of_stored(row: ModelResult, vectors: Vectors) -> ModelResult:
    """What a table's own vectors are beside those that a model gives the same texts."""
    return replace(
        row,
        model=f"the table's vectors, asked with {row.model}",
        tokens_sent=0,
        usd=0.0,
        usd_corpus=0.0,
        tokens_unseen=0,
        rejected=int((~has_vector(vectors)).sum()),
        tokens_per_second=None,
    )


def write_comparison(warehouse: Warehouse, comparison: Comparison) -> None:
    """Keep what was compared last for the pipeline's report."""
    values = asdict(comparison) | {"made_at": datetime.now(UTC).isoformat(timespec="seconds")}
    write_json(warehouse.comparison(comparison.pipeline), values)


def _require_usable(run: Run, options: ProviderOptions) -> None:
    name = _name(options)
    if not options.is_trusted:
        raise ConfigError(
            f"{name}: comparing runs no code that nobody vouched for. Write `trusted: true` in its "
            "options if it may."
        )
    finetuning = getattr(options, "finetune", None)
    if options != run.spec.model and finetuning is not None and finetuning.pairs == "receipts":
        raise ConfigError(
            f"{name}: it would be judged by the receipts that it is trained on. Write it into the "
            "pipeline file and run: the check not_worse_than_base compares it with its base."
        )
    problems = [*options.mistakes(run.warehouse.home), *options.missing_keys()]
    if problems:
        raise ConfigError(f"{name}: {problems[0]}")


def _name(options: ProviderOptions) -> str:
    parts = [options.kind, getattr(options, "title", "") or getattr(options, "model", "")]
    precision = getattr(options, "precision", "auto")
    return ":".join(filter(None, parts)) + (f" ({precision})" if precision != "auto" else "")


def _is_trained(copy: Run) -> bool:
    return step_named("train").current(copy) is not None


def _beside(copy: Run, number: int) -> Warehouse:
    """A folder for what another model is trained to, with the chunks of the copy."""
    root = copy.folder.folder.parent / f"model-{number}"
    folder = root / copy.spec.name / line_of(copy.spec)
    folder.mkdir(parents=True)
    (folder / "chunks").symlink_to(copy.folder.chunks.folder)
    return Warehouse(copy.warehouse.home, root)


def _take(copy: Run, most: int) -> _Sample:
    """The sample. Documents of judgements and of known items come first, then those with the
    smallest digests."""
    judged, items = read_qrels(copy), known_item_queries(copy, copy.spec.evaluation.known_items)
    names, chunks, tokens = set[str](), 0, 0
    needed = set(judged.documents if judged else ()) | {item.document_id for item in items}
    smallest: list[tuple[int, str]] = []  # negated digests: the greatest goes first
    for partition in copy.spec.partition_names:
        last = None
        for batch in copy.folder.chunks.read(partition, ["document_id", "tokens"]):
            chunks += batch.num_rows
            tokens += int(batch["tokens"].to_numpy().sum())
            for name in batch["document_id"].to_pylist():
                if name != last:
                    entry = (-int.from_bytes(digest(name.encode())[:8], "big"), name)
                    keep = heapq.heappush if len(smallest) < most else heapq.heappushpop
                    keep(smallest, entry)
                    names.add(name)
                last = name
    answers = set[str]().union(*map(judged.answers, judged.queries)) if judged else set[str]()
    if answers.isdisjoint(names) and not items:
        raise ConfigError(
            f"Pipeline {copy.spec.name!r} has no queries to compare models by: its texts are too "
            "short for known items, or evaluation.known_items is 0. Name evaluation.queries and "
            "evaluation.qrels, whose relevant documents are among the pipeline's."
        )
    chosen = needed & names
    for _, name in sorted(smallest, reverse=True):
        if len(chosen) >= most:
            break
        chosen.add(name)
    documents, texts, part = list[str](), list[str](), 0
    for partition in copy.spec.partition_names:
        for batch in copy.folder.chunks.read(partition, ["document_id", "text", "tokens"]):
            rows = (batch[name].to_pylist() for name in ("document_id", "text", "tokens"))
            for name, text, count in zip(*rows, strict=True):
                if name in chosen:
                    documents.append(name)
                    texts.append(text)
                    part += count
    return _Sample(documents, texts, part, len(names), chunks, tokens, judged, items)


def _measure(
    run: Run, sample: _Sample, cache: EmbeddingCache, budget: BudgetTracker
) -> tuple[ModelResult, Vectors, Vectors]:
    """One model's row without figures, and the vectors float32[n, d] of chunks and queries."""
    options, name = run.spec.model, _name(run.spec.model)
    if options.trains:
        for _ in step_named("train").work(run, run.spec.partition_names):
            pass
    model, clean = run.model, run.spec.preprocessing.clean
    queries = [clean.text(text) or text for text in sample.queries]
    readable = _readable(run, sample.texts, "document")
    query_texts = _readable(run, queries, "query")
    missing = _missing(run, readable, "document", cache) + _missing(
        run, query_texts, "query", cache
    )
    per_token = None if options.price is None else options.price / 1e6
    whole = sample.all_tokens * sum(readable.tokens) / max(1, sample.tokens)
    row = ModelResult(
        model=name,
        dimensions=model.space.dimensions,
        bytes_per_vector=4 * model.space.dimensions,
        tokens=sum(readable.tokens) + sum(query_texts.tokens),
        tokens_sent=missing,
        usd=None if per_token is None else missing * per_token,
        usd_corpus=None if per_token is None else whole * per_token,
        tokens_unseen=readable.unseen,
    )
    if missing and options.price != 0:
        run.progress.note(f"{name}: sends {counted(missing, 'token')}, {_dollars(row.usd)}.")
    usage = Usage()
    vectors = _embed(run, readable, "document", cache, budget, usage)
    answers = _embed(run, query_texts, "query", cache, budget, usage)
    row.rejected = int((~has_vector(vectors)).sum() + (~has_vector(answers)).sum())
    row.tokens_per_second = _rate(run, readable, usage)
    return row, vectors, answers


def _readable(run: Run, texts: Sequence[str], input_type: InputType) -> ReadableTexts:
    """The texts as the model reads them, cut at its limit."""
    return prepare(texts, run.model, input_type, "cut")


def _missing(
    run: Run, readable: ReadableTexts, input_type: InputType, cache: EmbeddingCache
) -> int:
    """Tokens of the texts that the cache lacks, each once."""
    space = run.model.space
    texts = dict(zip(readable.texts, readable.tokens, strict=True))
    keys = {text: cache.key(space.id, input_type, text) for text in texts}
    hits = cache.get_many(list(keys.values()), space.dimensions)
    return sum(texts[text] for text, key in keys.items() if key not in hits)


def _embed(
    run: Run,
    readable: ReadableTexts,
    input_type: InputType,
    cache: EmbeddingCache,
    budget: BudgetTracker,
    usage: Usage,
) -> Vectors:
    """float32[n, d], rows of NaN for what the model rejects."""
    done, total = 0, sum(readable.tokens)

    def advance(tokens: int) -> None:
        nonlocal done
        done += tokens
        run.progress.update("compare", done, total, f"tokens, {_name(run.spec.model)}")

    result = embed_all(
        readable.texts,
        run.model,
        cache,
        input_type,
        budget,
        readable=readable,
        advance=advance,
    )
    usage.add(result.usage)
    return result.vectors


def _rate(run: Run, readable: ReadableTexts, usage: Usage) -> float | None:
    """Tokens a second of what was embedded; where the cache had it all, of some texts that a model
    on this machine embeds anew."""
    if usage.embedded_tokens >= sum(readable.tokens[:TIMED_TEXTS]) and usage.provider_seconds:
        return usage.embedded_tokens / usage.provider_seconds
    if isinstance(run.spec.model, ServiceOptions):
        return None
    texts = readable.texts[:TIMED_TEXTS]
    run.model.embed(texts[:1], "document")  # loads it
    started = time.perf_counter()
    run.model.embed(texts, "document")
    return sum(readable.tokens[:TIMED_TEXTS]) / (time.perf_counter() - started)


def _values(sample: _Sample, vectors: Vectors, queries: Vectors) -> dict[str, dict[str, float]]:
    """By metric, the value of each query in [0, 1]. A query without a vector finds nothing."""
    sound, is_query = has_vector(vectors), has_vector(queries)
    search = ExactSearch(np.where(is_query[:, None], queries, 0), CHUNKS_OF_A_DOCUMENT * DEPTH)
    search.add([sample.documents[row] for row in np.flatnonzero(sound)], vectors[sound])
    names, cosines = search.result()
    rankings = [
        dict(reversed(list(zip(hits, map(float, scores), strict=False))))  # its best chunk counts
        for hits, scores in zip(names, cosines, strict=True)
    ]
    result: dict[str, dict[str, float]] = {}
    if sample.judged is not None:
        ids, present = sample.judged_ids, set(sample.documents)
        judged = dict(zip(ids, (_best(ranking, DEPTH) for ranking in rankings), strict=False))
        qrels = {
            name: sample.judged.relevance[name]
            for name in ids
            if not present.isdisjoint(sample.judged.answers(name))
        }
        for name, row in (values_by_query(judged, qrels) if qrels else {}).items():
            for metric, value in row.items():
                result.setdefault(metric, {})[name] = value
    same: dict[str, set[str]] = {}
    for name, text in zip(sample.documents, sample.texts, strict=True):
        same.setdefault(text, set()).add(name)
    for item, ranking in zip(sample.items, rankings[len(sample.judged_ids) :], strict=True):
        answers = {item.document_id} | same.get(item.text, set())
        places = (place for place, name in enumerate(_best(ranking, K), 1) if name in answers)
        place = next(places, 0)
        result.setdefault("known_item_mrr", {})[item.id] = 1 / place if place else 0.0
        result.setdefault("known_item_recall", {})[item.id] = float(place > 0)
    return result


def _best(ranking: Mapping[str, float], most: int) -> dict[str, float]:
    """The best documents, best first."""
    ordered = sorted(ranking.items(), key=lambda entry: -entry[1])
    return dict(ordered[:most])


def _figure(values: Sequence[float]) -> Figure:
    shares = np.asarray(values)
    low, high = lower_bound(shares, SIDE), 1 - lower_bound(1 - shares, SIDE)
    return Figure(float(shares.mean()), low, high, len(shares))


def _differences(
    other: Mapping[str, Mapping[str, float]], own: Mapping[str, Mapping[str, float]]
) -> dict[str, Figure]:
    """By metric, the model less the pipeline's own, over the same queries."""
    result = {}
    for name, values in own.items():
        half = _figure([(other[name][query] - values[query] + 1) / 2 for query in values])
        mean, low, high = (2 * value - 1 for value in (half.mean, half.low, half.high))
        result[name] = Figure(mean, low, high, half.queries)
    return result


def _dollars(usd: float | None) -> str:
    return "at a price that is not known" if usd is None else f"about {usd:,.4f} USD"
