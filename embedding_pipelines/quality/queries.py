"""The texts that a candidate is measured with: queries with relevance judgements and pairs from the
user's files, known items from the corpus itself. The cache keeps their vectors."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding_pipelines.embedding.texts import count_tokens
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.extras import require
from embedding_pipelines.files import read_json
from embedding_pipelines.metrics.known_items import known_item
from embedding_pipelines.preprocessing.tokens import has_content
from embedding_pipelines.providers.base import InputType
from embedding_pipelines.quality.real_queries import rated_queries
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import DIGEST_BYTES, DOCUMENT_DIGEST, digest
from embedding_pipelines.vectors import Vectors

RANKING = b"as found"  # figures of queries that were ranked otherwise are not compared
ROWS_AT_ONCE = 4_096  # first chunks whose texts are read together
BYTES = f"S{DIGEST_BYTES}"  # numpy's type of a digest
QUERY_ID, QUERY_TEXT = ("_id", "id", "query_id", "query-id"), ("text", "query")
QREL_COLUMNS = (
    ("query-id", "query_id"),
    ("corpus-id", "document_id", "doc_id"),
    ("score", "gain", "relevance"),
)
PAIR_COLUMNS = (("sentence1",), ("sentence2",), ("score",))


@dataclass(frozen=True)
class KnownItemQuery:
    """A query that was taken from a document, which should therefore be found by it."""

    id: str  # of query and text: as long as the document stays as it is
    document_id: str
    query: str
    text: str  # the document's first chunk


@dataclass(frozen=True)
class Qrels:
    """Queries that people wrote, and how relevant documents are to them: 0 is not at all."""

    queries: dict[str, str]  # text by query id
    relevance: dict[str, dict[str, int]]  # by document id, by query id

    @property
    def documents(self) -> set[str]:
        return set[str]().union(*self.relevance.values())

    def answers(self, query: str) -> list[str]:
        """The documents that are relevant to a query, the most relevant first."""
        gains = self.relevance[query]
        return sorted((name for name in gains if gains[name] > 0), key=lambda name: -gains[name])


def known_item_queries(run: Run, most: int) -> list[KnownItemQuery]:
    """Up to `most` queries from the corpus, always the same while their documents are: of the first
    partitions, which hold a random part of them, in the order of the documents' digests. Those that
    the model was trained on are left out."""
    trained = trained_queries(run)
    items = (item for item in known_items(run) if query_key(item.query) not in trained)
    return list(islice(items, most))


def query_key(text: str) -> str:
    """Names a query that a model was trained on, without its words."""
    return digest(text.strip().casefold().encode()).hex()[:16]


def trained_queries(run: Run) -> frozenset[str]:
    """The keys of the queries that the pipeline's model was fine-tuned on, which judge nothing."""
    if not run.spec.model.trains:
        return frozenset()
    return frozenset((read_json(run.folder.model) or {}).get("queries", ()))


def known_items(run: Run) -> Iterator[KnownItemQuery]:
    """As `known_item_queries`, of all documents."""
    has_title = len(getattr(run.spec.source, "text", ())) > 1
    for partition in run.spec.partition_names:
        for name, text in _first_chunks(run, partition):
            query = known_item(text, text.partition("\n")[0] if has_title else None)
            if query is not None:
                own = digest(RANKING, query.encode(), text.encode()).hex()
                yield KnownItemQuery(own, name, query, text)


def _first_chunks(run: Run, partition: str) -> Iterator[tuple[str, str]]:
    """Document id and text of each document's first chunk, equal documents once, in the order of
    their digests; no more is in memory than a batch, and ROWS_AT_ONCE texts."""
    digests, rows_of, done = [np.empty(0, BYTES)], [np.empty(0, np.int64)], 0
    for batch in run.folder.chunks.read(partition, ["start", DOCUMENT_DIGEST]):
        first = np.flatnonzero(batch["start"].to_numpy() == 0)
        names = batch[DOCUMENT_DIGEST].take(pa.array(first)).to_pylist()
        digests.append(np.frombuffer(b"".join(names), BYTES))
        rows_of.append(done + first)
        done += batch.num_rows
    _, places = np.unique(np.concatenate(digests), return_index=True)
    ordered = np.concatenate(rows_of)[places]
    for start in range(0, len(ordered), ROWS_AT_ONCE):
        numbers = ordered[start : start + ROWS_AT_ONCE]
        rising, parts, done = np.sort(numbers), [], 0
        for batch in run.folder.chunks.read(partition, ["document_id", "text"]):
            low, high = np.searchsorted(rising, [done, done + batch.num_rows])
            parts.append(batch.take(pa.array(rising[low:high] - done)))
            done += batch.num_rows
        rows = pa.Table.from_batches(parts).take(np.argsort(np.argsort(numbers)))
        yield from zip(rows["document_id"].to_pylist(), rows["text"].to_pylist(), strict=True)


def query_tokens(run: Run) -> int:
    """Tokens, by the model's tokenizer, of all these texts that are not in the cache."""
    space, texts = run.model.space, dict.fromkeys(query_texts(run))
    keys = {text: run.cache.key(space.id, text[1], text[0]) for text in texts}
    hits = run.cache.get_many(list(keys.values()), space.dimensions)
    misses = [text for (text, _), key in keys.items() if key not in hits]
    return sum(count_tokens(misses, run.model.tokenizer))


def query_texts(run: Run) -> Iterator[tuple[str, InputType]]:
    """All that checks embed through the cache, each with the input type that it is embedded as."""
    for item in known_item_queries(run, run.spec.evaluation.known_items):
        yield item.query, "query"
    qrels = read_qrels(run)
    for query in qrels.queries.values() if qrels else ():
        yield query, "query"
    for left, right, _ in read_pairs(run):
        yield left, "document"
        yield right, "document"


def has_vector(vectors: Vectors) -> NDArray[np.bool_]:
    """Which rows of float32[n, d] the provider did not reject, bool[n]."""
    return np.asarray(np.isfinite(vectors).all(axis=1), np.bool_)


def read_qrels(run: Run) -> Qrels | None:
    """The queries with relevance judgements: those of the pipeline's files, and those of which people
    rated results, but for those that the model was trained on; None without any. Raises ConfigError
    for a file that is not there or lacks a column."""
    texts, relevance = qrels_of_files(run)
    try:
        require("ir_measures", "evaluation")  # before a run pays for what it could not measure
        rated = rated_queries(run)
    except ConfigError:
        if texts:
            raise
        return None  # nobody asked for figures
    if not texts and not rated[0]:
        return None
    texts, relevance, trained = rated[0] | texts, rated[1] | relevance, trained_queries(run)
    texts = {name: text for name, text in texts.items() if query_key(text) not in trained}
    return Qrels(texts, {name: relevance[name] for name in texts}) if texts else None


def qrels_of_files(run: Run) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    """Texts and judgements by query id, as the files of `evaluation` have them. Raises as
    `read_qrels`."""
    options = run.spec.evaluation
    if options.queries is None or options.qrels is None:
        return {}, {}
    relevance: dict[str, dict[str, int]] = {}
    for query, document, score in _columns(run, options.qrels, "qrels", QREL_COLUMNS):
        grade = _number(score, options.qrels)
        if not grade.is_integer():
            raise ConfigError(
                f"evaluation.qrels: {options.qrels} holds the relevance {score}. Write whole "
                "numbers."
            )
        relevance.setdefault(query, {})[document] = int(grade)
    columns = _columns(run, options.queries, "queries", (QUERY_ID, QUERY_TEXT))
    texts = {row[0]: row[1] for row in columns}
    names = [name for name in relevance if name in texts and max(relevance[name].values()) > 0]
    if not names:
        raise ConfigError(
            f"evaluation: no query of {options.queries} has a relevant document in "
            f"{options.qrels}. Give both files the same query ids."
        )
    for name in names:
        _require_text(texts[name], f"evaluation.queries: {options.queries}: query {name!r}")
    return {name: texts[name] for name in names}, {name: relevance[name] for name in names}


def read_pairs(run: Run) -> list[tuple[str, str, float]]:
    """Sentence pairs with the score that people gave; empty if the pipeline names no file."""
    path = run.spec.evaluation.pairs
    if path is None:
        return []
    pairs = []
    for number, (left, right, score) in enumerate(_columns(run, path, "pairs", PAIR_COLUMNS), 1):
        for name, text in zip(PAIR_COLUMNS, (left, right), strict=False):
            _require_text(text, f"evaluation.pairs: {path}: {name[0]} of pair {number}")
        pairs.append((left, right, _number(score, path)))
    return pairs


def evaluation_files(run: Run) -> list[Path]:
    """The files that `evaluation:` names."""
    options = run.spec.evaluation
    names = (options.queries, options.qrels, options.pairs)
    return [run.warehouse.home / name for name in names if name]


def _columns(
    run: Run, name: str, option: str, columns: Sequence[Sequence[str]]
) -> Iterator[tuple[str, ...]]:
    """Some columns, each under one of several names, of a JSON Lines, CSV or tab-separated file."""
    rows = read_rows(run.warehouse.home / name, f"evaluation.{option}")
    yield from pick_columns(rows, f"evaluation.{option}: {run.warehouse.home / name}", columns)


def read_rows(path: Path, option: str) -> list[Mapping[str, object]]:
    """The rows of a JSON Lines, CSV or tab-separated file, which is told by its ending, and which an
    option names. Raises ConfigError for a file that cannot be read, or without rows."""
    where = f"{option}: {path}"
    try:
        rows = list(_rows(path))
    except OSError as error:
        raise ConfigError(f"{where} cannot be read: {error.strerror}.") from error
    except (ValueError, csv.Error) as error:
        raise ConfigError(
            f"{where} is neither JSON Lines nor a table with a header: {error}."
        ) from error
    if not rows:
        raise ConfigError(f"{where} holds no rows. Give it some, or leave the option out.")
    return rows


def pick_columns(
    rows: Sequence[Mapping[str, object]], where: str, columns: Sequence[Sequence[str]]
) -> Iterator[tuple[str, ...]]:
    """Some columns of the rows, each under one of several names. Raises ConfigError without one."""
    names = [next((name for name in names if name in rows[0]), "") for names in columns]
    if "" in names:
        missing = " or ".join(map(repr, columns[names.index("")]))
        present = ", ".join(map(repr, rows[0]))
        raise ConfigError(f"{where} has no column {missing}; found {present}. Rename one.")
    for row in rows:
        yield tuple("" if row.get(name) is None else str(row[name]) for name in names)


def _rows(path: Path) -> Iterator[Mapping[str, object]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix in (".jsonl", ".ndjson"):
            yield from (json.loads(line) for line in file if line.strip())
        else:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            yield from csv.DictReader(file, delimiter=delimiter)


def _require_text(text: str, where: str) -> None:
    if not has_content(text):
        raise ConfigError(f"{where} is empty. Write its text, or leave it out.")


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(
            f"evaluation: {where} holds {text!r} where a number should stand."
        ) from error
