"""What a model is fine-tuned on, and what judges it: pairs of queries and documents, in two parts
that share no document, and the base's own ranking of a sample of the corpus.

Queries that judge the pipeline's candidates are in neither part that is trained on, nor are their
documents.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from embedding_pipelines.embedding.embed import embed_all
from embedding_pipelines.embedding.texts import prepare
from embedding_pipelines.errors import ConfigError, SourceError
from embedding_pipelines.extras import version_of
from embedding_pipelines.inference.finetuning import Example, Finetuning
from embedding_pipelines.metrics.neighbours import ExactSearch, K
from embedding_pipelines.metrics.retrieval import values_by_query
from embedding_pipelines.providers.base import EmbeddingModel, FinetunedModel, InputType
from embedding_pipelines.quality.queries import (
    QREL_COLUMNS,
    QUERY_ID,
    QUERY_TEXT,
    has_vector,
    known_items,
    pick_columns,
    qrels_of_files,
    query_key,
    read_rows,
)
from embedding_pipelines.quality.real_queries import rated_queries
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import digest
from embedding_pipelines.vectors import Vectors

HELD_OUT = 0.1  # of the documents, beside those that judge candidates
LEAST_QUERIES = 10  # to train on, and to judge by: fewer say nothing
MOST_KNOWN_ITEMS = 10_000  # queries of the pipeline's own documents; hours of one processor
SAMPLE = 5_000  # documents that negatives are taken from, and that held-out queries search
CHUNKS_OF_A_DOCUMENT = 4  # so many times K chunks are ranked, as a document may have several
# A text as near to the query as 95% of its answer may be an answer that nobody has judged
# (Moreira et al., "NV-Retriever", 2024: TopK-PercPos).
NEAREST_NEGATIVE = 0.95
OWN_TEXT = "text of the file: "  # before the digest of a positive that is no document's
POSITIVE = ("positive", "passage", "answer")

Relevance = dict[str, dict[str, int]]  # by document, by the text of the query


@dataclass(frozen=True)
class Split:
    """Queries by their text, with the documents that answer them."""

    train: Relevance
    held_out: dict[str, Relevance]  # by where they come from: judged, pairs, known_items
    held: frozenset[str]  # documents that judge candidates
    left_out: int  # queries with no document in the corpus

    def holds_out(self, document: str) -> bool:
        """Whether a document judges and is not trained on."""
        return document in self.held or _is_held_out(document)


@dataclass(frozen=True)
class Corpus:
    """Chunks of some documents, in the order of their partitions, with their document."""

    documents: list[str]
    texts: list[str]


def collect(run: Run, options: Finetuning) -> tuple[Split, Corpus]:
    """The queries to train on and those to judge by, and the chunks that both need. Raises
    ConfigError for a file of pairs that cannot be read, SourceError for too few of them."""
    relevance, own_texts = _read(run, options)
    judged, judging = qrels_of_files(run)
    items = list(islice(known_items(run), run.spec.evaluation.known_items))
    own_queries = {query_key(text) for text in (*judged.values(), *(item.query for item in items))}
    held = frozenset(item.document_id for item in items).union(*judging.values())
    names, corpus, same = _take(run, held.union(*relevance.values()), own_texts)
    relevance = {
        query: {same.get(name, name): grade for name, grade in documents.items()}
        for query, documents in relevance.items()
    }
    own_texts = {name: text for name, text in own_texts.items() if name not in same}
    corpus.documents.extend(own_texts)
    corpus.texts.extend(own_texts.values())
    names |= own_texts.keys()
    train, pairs, left_out = Relevance(), Relevance(), 0
    split = Split(train, {}, held, 0)
    for query, documents in relevance.items():
        if query_key(query) in own_queries:
            continue
        answers = [name for name, grade in documents.items() if grade > 0 and name in names]
        to_train = sorted(name for name in answers if not split.holds_out(name))
        if to_train:  # it judges nothing, whatever else answers it
            train[query] = {name: documents[name] for name in to_train}
        elif answers:
            pairs[query] = documents
        else:
            left_out += 1
    groups: dict[str, Relevance] = {
        "judged": {judged[name]: judging[name] for name in judged},
        "pairs": pairs,
        "known_items": {item.query: {item.document_id: 1} for item in items},
    }
    held_out = {
        group: {query: each for query, each in queries.items() if not names.isdisjoint(each)}
        for group, queries in groups.items()
    }
    held_out = {group: queries for group, queries in held_out.items() if queries}
    split = Split(train, held_out, held, left_out)
    _require_enough(run, options, split)
    return split, corpus


def check_pairs(run: Run, options: Finetuning) -> None:
    """Read the files that the options name. Raises ConfigError for one that cannot be read, lacks a
    column or holds a grade that is no number."""
    if options.pairs in options.files:
        for _ in _rows_of_file(run, options):
            pass


def _require_enough(run: Run, options: Finetuning, split: Split) -> None:
    train, held_out = len(split.train), sum(map(len, split.held_out.values()))
    if min(train, held_out) >= LEAST_QUERIES:
        return
    raise SourceError(
        f"finetune.pairs: {options.pairs} gives {train:,} queries to train on and {held_out:,} to judge "
        f"the model by; each has to be {LEAST_QUERIES} or more. {split.left_out:,} others are of no "
        f"document of the pipeline. A tenth of the documents is held out, and all {len(split.held):,} "
        "that judge candidates. Give it more pairs or documents, or lower evaluation.known_items."
    )


def _read(run: Run, options: Finetuning) -> tuple[Relevance, dict[str, str]]:
    """Documents by query, and the texts that the file itself holds."""
    clean = run.spec.preprocessing.clean
    relevance: Relevance = defaultdict(dict)
    own_texts: dict[str, str] = {}
    if options.pairs == "known_items":
        every = ((digest(item.text.encode()), item) for item in known_items(run))
        for _, item in heapq.nsmallest(MOST_KNOWN_ITEMS, every, key=lambda pair: pair[0]):
            relevance[item.query][item.document_id] = 1
    elif options.pairs == "receipts":
        texts, judgements = rated_queries(run)
        for name, query in texts.items():
            relevance[clean.text(query) or query].update(judgements[name])
    else:
        for query, document, text, grade in _rows_of_file(run, options):
            if text:
                document = f"{OWN_TEXT}{digest(text.encode()).hex()}"
                own_texts[document] = text
            relevance[clean.text(query) or query][document] = grade
    return dict(relevance), own_texts


def _rows_of_file(run: Run, options: Finetuning) -> Iterator[tuple[str, str, str, int]]:
    """Query, document, the answer's own text if there is one, and grade."""
    home = run.warehouse.home
    rows = read_rows(home / options.pairs, "finetune.pairs")
    where = f"finetune.pairs: {home / options.pairs}"
    if options.queries is not None:
        own = read_rows(home / options.queries, "finetune.queries")
        place = f"finetune.queries: {home / options.queries}"
        texts = {row[0]: row[1] for row in pick_columns(own, place, (QUERY_ID, QUERY_TEXT))}
        for name, document, score in pick_columns(rows, where, QREL_COLUMNS):
            if name in texts:
                yield texts[name], document, "", _grade(score, where)
        return
    has_text = not any(name in rows[0] for name in QREL_COLUMNS[1])
    answer = POSITIVE if has_text else QREL_COLUMNS[1]
    for query, name in pick_columns(rows, where, (("query", "anchor", "text"), answer)):
        yield (query, "", name, 1) if has_text else (query, name, "", 1)


def _grade(score: str, where: str) -> int:
    try:
        return round(float(score))
    except ValueError as error:
        raise ConfigError(f"{where} holds {score!r} where a number should stand.") from error


def _is_held_out(document: str) -> bool:
    """Whether a document judges and is not trained on, which its name alone decides."""
    return int.from_bytes(digest(b"held out", document.encode())[:8], "big") < HELD_OUT * 2**64


def _take(
    run: Run, needed: Set[str], own_texts: Mapping[str, str]
) -> tuple[set[str], Corpus, dict[str, str]]:
    """The names of all documents; the chunks of those that are needed, and of others as chance has
    it, always the same, up to SAMPLE documents; and the documents of texts that are also in the
    file of pairs, by the name that they have there."""
    names, smallest = set[str](), list[tuple[int, str]]()
    for partition in run.spec.partition_names:
        run.folder.chunks.required(partition)
        for batch in run.folder.chunks.read(partition, ["document_id"]):
            for name in set(batch["document_id"].to_pylist()) - names:
                names.add(name)
                entry = (-int.from_bytes(digest(name.encode())[:8], "big"), name)
                keep = heapq.heappush if len(smallest) < SAMPLE else heapq.heappushpop
                keep(smallest, entry)
    chosen = set(needed & names)
    for _, name in sorted(smallest, reverse=True):
        if len(chosen) >= SAMPLE:
            break
        chosen.add(name)
    corpus, same = Corpus([], []), dict[str, str]()
    names_of = {text: name for name, text in own_texts.items()}
    for partition in run.spec.partition_names:
        for batch in run.folder.chunks.read(partition, ["document_id", "text"]):
            columns = (batch[name].to_pylist() for name in ("document_id", "text"))
            for name, text in zip(*columns, strict=True):
                if text in names_of:
                    same[names_of[text]] = name
                if name in chosen or text in names_of:
                    corpus.documents.append(name)
                    corpus.texts.append(text)
    return names, corpus, same


def examples_of(
    run: Run, base: EmbeddingModel, split: Split, corpus: Corpus, negatives: int
) -> list[Example]:
    """A row for each query and answer that is trained on: of an answer's chunks the nearest, and
    the nearest texts that are no answers and stand in no held-out document."""
    queries = list(split.train)
    vectors, query_vectors = embed_both(run, base, corpus.texts, queries)
    rows = [row for row, name in enumerate(corpus.documents) if not split.holds_out(name)]
    pool = np.array(rows, np.int64)[has_vector(vectors[rows])]
    documents = np.array([corpus.documents[row] for row in pool], object)
    texts = [corpus.texts[row] for row in pool]
    places: dict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(documents):
        places[name].append(place)
    result = list[Example]()
    for query, vector in zip(queries, query_vectors, strict=True):
        answers = split.train[query]
        if not np.isfinite(vector).all():
            continue
        cosines = vectors[pool] @ vector
        others = np.flatnonzero(~np.isin(documents, list(answers)))
        for name in answers:
            if name not in places:
                continue
            best = max(places[name], key=cosines.__getitem__)
            near = _negatives(cosines, others, float(cosines[best]), negatives)
            if len(near) == negatives:
                result.append(Example(query, texts[best], tuple(texts[row] for row in near)))
    return result


def _negatives(
    cosines: Vectors, others: NDArray[np.int64], answer: float, count: int
) -> NDArray[np.int64]:
    """The nearest of the rows `others` that are less near than the answer by a margin."""
    most = answer - abs(answer) * (1 - NEAREST_NEGATIVE)
    rows = others[cosines[others] <= most]
    return rows[np.argsort(-cosines[rows], kind="stable")[:count]]


def measure(
    run: Run, model: EmbeddingModel, split: Split, corpus: Corpus
) -> dict[str, dict[str, float]]:
    """nDCG@10 of each held-out query by its key, by group: of the exact ranking of the sample's
    documents."""
    queries = [query for group in split.held_out.values() for query in group]
    vectors, query_vectors = embed_both(run, model, corpus.texts, queries)
    sound, is_query = has_vector(vectors), has_vector(query_vectors)
    search = ExactSearch(np.where(is_query[:, None], query_vectors, 0), CHUNKS_OF_A_DOCUMENT * K)
    search.add([corpus.documents[row] for row in np.flatnonzero(sound)], vectors[sound])
    names, cosines = search.result()
    rankings: dict[str, dict[str, float]] = {}
    for query, hits, scores in zip(queries, names, cosines, strict=True):
        pairs = list(zip(hits, map(float, scores), strict=False))
        rankings[query] = dict(reversed(pairs))  # the best chunk of a document counts
    figures: dict[str, dict[str, float]] = {}
    for group, relevance in split.held_out.items():
        answered = {query: each for query, each in relevance.items() if max(each.values()) > 0}
        values = values_by_query(rankings, answered) if answered else {}
        figures[group] = {query_key(query): row["ndcg_at_10"] for query, row in values.items()}
    return {group: values for group, values in figures.items() if values}


def embed_both(
    run: Run, model: EmbeddingModel, texts: Sequence[str], queries: Sequence[str]
) -> tuple[Vectors, Vectors]:
    """float32[n, d] of texts and of queries through the cache, rows of NaN for what the model
    rejects."""
    done = 0
    readable = [prepare(texts, model, "document", "cut"), prepare(queries, model, "query", "cut")]
    total = sum(sum(part.tokens) for part in readable)

    def advance(tokens: int) -> None:
        nonlocal done
        done += tokens
        run.progress.update("train", done, total, f"tokens, {model.options.kind}")

    kinds: tuple[InputType, InputType] = ("document", "query")
    first, second = (
        embed_all(part.texts, model, run.cache, kind, readable=part, advance=advance).vectors
        for part, kind in zip(readable, kinds, strict=True)
    )
    return first, second


def model_card(run: Run, model: FinetunedModel, record: Mapping[str, Any]) -> str:
    """The card of a fine-tuned model, which quotes no text: as the hub's, what it is on top in
    YAML."""
    options, base = model.finetuning, model.base
    means = {
        group: {name: round(float(np.mean(list(each[group].values()))), 6) for name, each in sides}
        for sides in (record["figures"].items(),)
        for group in record["figures"]["base"]
    }
    head = {
        "base_model": base.space.model,
        "base_revision": base.space.revision,
        "library_name": "sentence-transformers",
        "pipeline": run.spec.name,
        "data_digest": record["data"],
        "pairs": record["pairs"],
        "held_out_queries": record["held_out"],
        "ndcg_at_10": means,
        "finetune": options.model_dump(mode="json", exclude_none=True),
        "versions": {name: version_of(name) for name in ("sentence-transformers", "torch")},
    }
    text = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    lines = [
        f"| {group} | {len(record['figures']['base'][group]):,} | {each['base']:.4f} | "
        f"{each['trained']:.4f} |"
        for group, each in means.items()
    ]
    return (
        f"---\n{text}---\n\n# {base.space.model}, fine-tuned for the pipeline {run.spec.name}\n\n"
        f"Trained on {record['pairs']:,} pairs of a query and its text. Queries of other documents "
        "judge it, by nDCG@10. The base's licence holds for it.\n\n"
        "| held-out queries | number | base | fine-tuned |\n|---|---|---|---|\n"
        + "\n".join(lines)
        + "\n"
    )
