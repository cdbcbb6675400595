"""queries: what a candidate is measured with. Judged queries and pairs come from the user's files,
known items from the corpus itself; all are embedded through the cache, so that measuring again
costs nothing.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding_pipelines.embedding.budget import BudgetTracker
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.embedding.embed import embed_all
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.extras import need
from embedding_pipelines.metrics.known_items import known_item
from embedding_pipelines.providers.base import EmbeddingModel, InputType
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import DOCUMENT_DIGEST, digest
from embedding_pipelines.vectors import Vectors

WINDOW = 4_096  # texts that are handed to `embed` at once
QUERY_ID, QUERY_TEXT = ("_id", "id", "query_id", "query-id"), ("text", "query")
QREL_COLUMNS = (
    ("query-id", "query_id"),
    ("corpus-id", "document_id", "doc_id"),
    ("score", "gain", "relevance"),
)
PAIR_COLUMNS = (("sentence1",), ("sentence2",), ("score",))


@dataclass(frozen=True)
class KnownQuery:
    """A query that was taken from a document, which should therefore be found by it."""

    id: str  # of the text of query and rest: as long as the document stays as it is
    document_id: str
    query: str
    rest: str  # of the document's first chunk, without the query


@dataclass(frozen=True)
class Judged:
    """Queries that people wrote, and which documents answer them how well."""

    queries: dict[str, str]
    gains: dict[str, dict[str, int]]


def known_item_queries(run: Run, wanted: int, skip: int = 0) -> list[KnownQuery]:
    """Up to `wanted` queries from the corpus, always the same while their documents are; `skip`
    goes past the first.

    They are of the first partitions, which hold a random part of the documents, in the order of the
    documents' digests.
    """
    has_title = len(getattr(run.spec.source, "text", ())) > 1
    found: list[KnownQuery] = []
    for partition in run.spec.partition_names:
        if len(found) >= skip + wanted:
            break
        for name, text in _first_chunks(run, partition):
            item = known_item(text, text.partition("\n")[0] if has_title else None)
            if item is not None:
                own = digest(item.query.encode(), item.rest.encode()).hex()
                found.append(KnownQuery(own, name, item.query, item.rest))
            if len(found) == skip + wanted:
                break
    return found[skip:]


def _first_chunks(run: Run, partition: str) -> Iterator[tuple[str, str]]:
    """Document id and text of each document's first chunk, equal documents once, in the order of
    their digests."""
    first: dict[bytes, int] = {}  # row by digest
    done = 0
    for batch in run.folder.chunks.read(partition, ["start", DOCUMENT_DIGEST]):
        for row in np.flatnonzero(batch["start"].to_numpy() == 0):
            first.setdefault(batch[DOCUMENT_DIGEST][row].as_py(), done + int(row))
        done += batch.num_rows
    ordered = np.array([row for _, row in sorted(first.items())], np.int64)
    for start in range(0, len(ordered), WINDOW):
        window = ordered[start : start + WINDOW]
        rows = chunk_rows(run, partition, np.sort(window), ["document_id", "text"])
        for row in rows.take(np.argsort(np.argsort(window))).to_pylist():
            yield row["document_id"], row["text"]


def chunk_rows(
    run: Run, partition: str, rows: NDArray[np.int64], columns: Sequence[str]
) -> pa.Table:
    """Some columns of the rows of these numbers, which rise; no more of the partition is in memory
    than a batch."""
    found, done = [], 0
    for batch in run.folder.chunks.read(partition, list(columns)):
        start, end = np.searchsorted(rows, [done, done + batch.num_rows])
        found.append(batch.take(pa.array(rows[start:end] - done)))
        done += batch.num_rows
    return pa.Table.from_batches(found)


def embed_texts(
    model: EmbeddingModel,
    cache: EmbeddingCache,
    texts: Sequence[str],
    input_type: InputType,
    budget: BudgetTracker | None = None,
) -> Vectors:
    """Vectors float32[len(texts), d] through the cache, NaN for what the provider rejects. Raises
    as `embed_all`."""
    return embed_all(texts, model, cache, input_type, budget).vectors


def answered(vectors: Vectors) -> NDArray[np.bool_]:
    """Which rows of float32[n, d] the provider did not refuse, bool[n]."""
    rows: NDArray[np.bool_] = np.asarray(np.isfinite(vectors).all(axis=1))
    return rows


def judged_queries(run: Run) -> Judged | None:
    """The queries of the pipeline's files that have a judgement, None if the pipeline names no
    files.

    Raises ConfigError for a file that is not there or lacks a column.
    """
    options = run.spec.evaluation
    if options.queries is None or options.qrels is None:
        return None
    need("ir_measures", "evaluation")  # before a run pays for what it could not measure
    gains: dict[str, dict[str, int]] = {}
    for query, document, gain in _columns(run, options.qrels, "qrels", QREL_COLUMNS):
        worth = _number(gain, options.qrels)
        if not worth.is_integer():
            raise ConfigError(
                f"evaluation.qrels: {options.qrels} holds the gain {gain}; write whole numbers."
            )
        gains.setdefault(query, {})[document] = int(worth)
    texts = {
        row[0]: row[1] for row in _columns(run, options.queries, "queries", (QUERY_ID, QUERY_TEXT))
    }
    judged = {
        query: found for query, found in gains.items() if query in texts and max(found.values()) > 0
    }
    if not judged:
        raise ConfigError(
            f"evaluation: no query of {options.queries} has a judgement in {options.qrels}. Their ids must be the same."
        )
    return Judged({query: texts[query] for query in judged}, judged)


def scored_pairs(run: Run) -> list[tuple[str, str, float]]:
    """Sentence pairs with the score that people gave; empty if the pipeline names no file."""
    path = run.spec.evaluation.pairs
    if path is None:
        return []
    rows = _columns(run, path, "pairs", PAIR_COLUMNS)
    return [(left, right, _number(score, path)) for left, right, score in rows]


def evaluation_files(run: Run) -> list[Path]:
    """The files that `evaluation:` names."""
    options = run.spec.evaluation
    return [
        run.warehouse.home / name
        for name in (options.queries, options.qrels, options.pairs)
        if name
    ]


def _columns(
    run: Run, name: str, option: str, wanted: Sequence[Sequence[str]]
) -> Iterator[tuple[str, ...]]:
    """Some columns, each under one of several names, of a JSON Lines, CSV or tab-separated file."""
    path = run.warehouse.home / name
    try:
        rows = list(_rows(path))
    except OSError as error:
        raise ConfigError(
            f"evaluation.{option}: {path} cannot be read: {error.strerror}."
        ) from error
    except (ValueError, csv.Error) as error:
        raise ConfigError(
            f"evaluation.{option}: {path} is neither JSON Lines nor a table with a header: {error}."
        ) from error
    if not rows:
        raise ConfigError(
            f"evaluation.{option}: {path} holds no rows. Give it some, or leave the option out."
        )
    names = [next((known for known in names if known in rows[0]), "") for names in wanted]
    if "" in names:
        missing, found = (
            " or ".join(map(repr, wanted[names.index("")])),
            ", ".join(map(repr, rows[0])),
        )
        raise ConfigError(f"evaluation.{option}: {path} has no column {missing}; found {found}.")
    for row in rows:
        yield tuple("" if row.get(name) is None else str(row[name]) for name in names)


def _rows(path: Path) -> Iterator[Mapping[str, object]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix in (".jsonl", ".ndjson"):
            yield from (json.loads(line) for line in file if line.strip())
        else:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            yield from csv.DictReader(file, delimiter=delimiter)


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(
            f"evaluation: {where} holds {text!r} where a number should stand."
        ) from error
