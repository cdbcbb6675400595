"""What people really searched for, as a server's receipts tell it: judged queries for the metrics,
and answers to compare a candidate's with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from embedding_pipelines.releases import Release
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import digest
from embedding_pipelines.storage.receipts import Receipts

MOST = 200  # answers that are compared; the newest
DOCUMENTS = 10  # of each answer


@dataclass(frozen=True)
class Answer:
    """What the server showed for a query."""

    query: str
    documents: list[str]  # best first
    filter: str | Mapping[str, Any] | None


def rated_queries(run: Run) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    """Texts of queries that people rated or clicked results of, by an id, and the relevance of
    documents, by the same id. Of several ratings of one pair the mean counts, rounded; queries
    without a relevant document are left out."""
    receipts, ratings = Receipts(run.folder.folder).read()
    queries = {each.id: each.query for each in receipts if each.query is not None}
    given: dict[str, dict[str, list[int]]] = {}
    for each in ratings:
        query = queries.get(each.receipt)
        if query is not None:
            given.setdefault(query, {}).setdefault(each.document_id, []).append(each.rating)
    texts, relevance = dict[str, str](), dict[str, dict[str, int]]()
    for query, documents in sorted(given.items()):
        grades = {name: round(sum(all_) / len(all_)) for name, all_ in documents.items()}
        if max(grades.values()) > 0:
            name = f"receipt:{digest(query.encode()).hex()[:16]}"
            texts[name], relevance[name] = query, grades
    return texts, relevance


def answers(run: Run, release: Release) -> list[Answer]:
    """The newest answers of a release by the mode that is its own, of each query and filter one."""
    receipts, _ = Receipts(run.folder.folder).read()
    newest: dict[str, Answer] = {}
    for each in reversed(receipts):
        is_its_own = (each.release, each.mode) == (release.number, release.spec.search.mode)
        if is_its_own and each.query is not None and each.documents and len(newest) < MOST:
            answer = Answer(each.query, each.documents[:DOCUMENTS], each.filter)
            newest.setdefault(repr((each.query, each.filter)), answer)
    return list(newest.values())
