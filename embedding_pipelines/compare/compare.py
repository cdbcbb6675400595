"""compare: which model finds most in a pipeline's own data, and what each would cost.

All models embed the same sample of its chunks, through the cache, and answer the same queries by
exact search. Nothing of the pipeline changes; what a model has embedded is not paid for again when
the pipeline takes it.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import gettempdir

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedding_pipelines.compare.figures import Figure, differences, figure, query_values
from embedding_pipelines.compare.sample import Sample, take_sample
from embedding_pipelines.compare.table import TABLE_ROWS, read_rows, table_pipeline
from embedding_pipelines.embedding.budget import BudgetTracker, Usage
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.embedding.embed import embed_all
from embedding_pipelines.embedding.texts import ReadableTexts, prepare
from embedding_pipelines.errors import ConfigError, counted
from embedding_pipelines.files import temporary_folder, write_json
from embedding_pipelines.progress import Progress
from embedding_pipelines.providers.base import InputType, ProviderOptions
from embedding_pipelines.providers.common.http import ServiceOptions
from embedding_pipelines.quality.queries import has_vector
from embedding_pipelines.remote import refresh
from embedding_pipelines.run import Run, line_of
from embedding_pipelines.steps.chain import step_named
from embedding_pipelines.steps.copy import copy_with_chunks
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines.vectors import Vectors

DOCUMENTS = 2_000
TIMED_TEXTS = 64  # that a local model embeds anew where the cache had all


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
    sample_size: int = 0  # how many documents were to be taken; more, if the queries are about more
    models: list[ModelResult] = field(default_factory=list)


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
        return _compare(run, copy, every, take_sample(copy, documents), documents)


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
        rows, vectors = read_rows(path, documents)
        pq.write_table(pa.table(rows.texts), folder / TABLE_ROWS)
        spec = table_pipeline(path, folder).model_copy(update={"model": models[0]})
        with Run(spec, Warehouse(home, folder), progress) as run:
            for options in models:
                _require_usable(run, options)
            for name in ("documents", "chunks"):
                for _ in step_named(name).work(run, spec.partition_names):
                    pass
            sample = take_sample(run, documents)
            scale = rows.total / sample.all_documents
            sample = replace(
                sample,
                all_documents=rows.total,
                all_chunks=rows.total,
                all_tokens=round(sample.all_tokens * scale),
            )
            return _compare(run, run, list(dict.fromkeys(models)), sample, documents, vectors)


def _compare(
    run: Run,
    copy: Run,
    every: Sequence[ProviderOptions],
    sample: Sample,
    sample_size: int,
    table_vectors: Mapping[str, Vectors] | None = None,
) -> Comparison:
    """`copy` has the chunks; `table_vectors`: by document, of a table that nobody else knows."""
    result = Comparison(
        run.spec.name,
        documents=len(set(sample.documents)),
        all_documents=sample.all_documents,
        chunks=len(sample.texts),
        all_chunks=sample.all_chunks,
        judged_queries=len(sample.judged_ids),
        known_items=len(sample.items),
        sample_size=sample_size,
    )
    cache, values = EmbeddingCache(run.warehouse.cache), list[dict[str, dict[str, float]]]()

    def add(row: ModelResult, vectors: Vectors, queries: Vectors) -> None:
        by_query = query_values(sample, vectors, queries)
        row.figures = {name: figure(list(each.values())) for name, each in by_query.items()}
        row.differences = differences(by_query, values[0]) if values else {}
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
        if table_vectors:
            own_vectors = np.stack([table_vectors[name] for name in sample.documents])
            if own_vectors.shape[1] == row.dimensions:
                add(_of_stored(row, own_vectors), own_vectors, queries)
    return result


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


def _measure(
    run: Run, sample: Sample, cache: EmbeddingCache, budget: BudgetTracker
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
    count, total = 0, sum(readable.tokens)

    def advance(tokens: int) -> None:
        nonlocal count
        count += tokens
        run.progress.update("compare", count, total, f"tokens, {_name(run.spec.model)}")

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


def _dollars(usd: float | None) -> str:
    return "at a price that is not known" if usd is None else f"about {usd:,.4f} USD"
