"""What two releases answer to the same questions: whose first ten documents changed, what came and
what went.

Each release is asked in its own space, as a searcher asks it. Vectors come from the cache; the
model is loaded and asked only for texts that are not in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from embedding_pipelines.diff.documents import Opened, Sampled
from embedding_pipelines.embedding.budget import BudgetTracker
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.embedding.embed import embed_all
from embedding_pipelines.files import read_json
from embedding_pipelines.providers.base import InputType
from embedding_pipelines.search import nearest
from embedding_pipelines.space import require_same_space
from embedding_pipelines.storage.warehouse import PipelineFolder
from embedding_pipelines.vectors import Vectors

TOP = 10
CHUNKS_FOR_DOCUMENTS = 3 * TOP  # a document has several, and TOP documents are listed


@dataclass(frozen=True)
class Question:
    """What both releases are asked, in the words that each of them embeds."""

    id: str
    before: str
    after: str
    own: str = ""  # a document that is no answer: the question is its text


@dataclass(frozen=True)
class Change:
    """A question with other answers. `overlap` is the share of the longer list that stands in
    both."""

    id: str
    text: str
    overlap: float
    came: list[str]
    went: list[str]


@dataclass
class Answers:
    """How far two releases agree."""

    compared: int = 0  # questions that have a vector in both
    mean_overlap: float | None = None
    changed: list[Change] = field(default_factory=list)  # least overlap first
    without_vector: int = 0  # questions that a provider refuses
    embedded_before: int = 0  # texts that a provider was called for
    embedded_after: int = 0


def measured_queries(folder: PipelineFolder, before: Opened, after: Opened) -> list[Question]:
    """The queries that were measured last, cleaned as each release cleans: the user's own, else
    those that were taken from documents; [] if nothing was measured yet."""
    stored = (read_json(folder.queries) or {"queries": []})["queries"]
    stored = [entry for entry in stored if not entry["from"]] or stored
    cleaned = [opened.release.spec.preprocessing.clean.text for opened in (before, after)]
    questions = [
        Question(entry["id"], *(clean(entry["text"]) for clean in cleaned)) for entry in stored
    ]
    return [question for question in questions if question.before and question.after]


def as_questions(sample: Sequence[Sampled]) -> list[Question]:
    """Documents as questions for their neighbours."""
    return [
        Question(entry.document_id, entry.before, entry.after, own=entry.document_id)
        for entry in sample
    ]


def compare_answers(
    before: Opened,
    after: Opened,
    cache: EmbeddingCache,
    questions: Sequence[Question],
    input_type: InputType,
) -> Answers:
    """Ask both. Raises ProviderError, BudgetError or SpaceMismatchError if a text that is not in
    the cache cannot be embedded as it was for the release."""
    answers = Answers()
    old, answers.embedded_before = _vectors(
        before, cache, [question.before for question in questions], input_type
    )
    new, answers.embedded_after = _vectors(
        after, cache, [question.after for question in questions], input_type
    )
    overlaps = []
    for question, left, right in zip(questions, old, new, strict=True):
        if not np.isfinite(left).all() or not np.isfinite(right).all():
            answers.without_vector += 1
            continue
        change = _change(
            question, _top(before, left, question.own), _top(after, right, question.own)
        )
        overlaps.append(change.overlap)
        if change.came or change.went:
            answers.changed.append(change)
    answers.compared = len(overlaps)
    answers.mean_overlap = float(np.mean(overlaps)) if overlaps else None
    answers.changed.sort(key=lambda change: (change.overlap, change.id))
    return answers


def _vectors(
    opened: Opened, cache: EmbeddingCache, texts: Sequence[str], input_type: InputType
) -> tuple[Vectors, int]:
    """Vectors float32[len(texts), d] in a release's space before compression, NaN for what its
    provider refuses; and how many texts the provider was called for."""
    space, release = opened.space, opened.release
    keys = {text: cache.key(space.id, input_type, text) for text in texts}
    vectors = cache.get_many(list(keys.values()), space.dimensions)
    missing = [text for text, key in keys.items() if key not in vectors]
    if missing:
        budget = BudgetTracker.of(release.spec.budget, release.spec.model)
        with release.spec.model.open(opened.home) as model:
            require_same_space(
                model.space,
                space.id,
                f"Release {release.number} of {release.spec.name!r}",
                "Its model is no longer the one it was made with; compare releases of today's "
                "model.",
            )
            new = embed_all(missing, model, cache, input_type, budget).vectors
        vectors |= {keys[text]: vector for text, vector in zip(missing, new, strict=True)}
    rows = [vectors[keys[text]] for text in texts]
    return np.stack(rows) if rows else np.empty((0, space.dimensions), np.float32), len(missing)


def _top(opened: Opened, vector: Vectors, own: str) -> list[str]:
    """The first TOP documents as a search shows them; of a document's neighbours, the first TOP
    others."""
    k = CHUNKS_FOR_DOCUMENTS if own else TOP
    rows = nearest(opened.table, opened.codec, vector, k, None, opened.release.version)
    documents = dict.fromkeys(rows["document_id"].to_pylist())
    documents.pop(own, None)
    return list(documents)[:TOP]


def _change(question: Question, old: Sequence[str], new: Sequence[str]) -> Change:
    came, went = (
        [name for name in new if name not in old],
        [name for name in old if name not in new],
    )
    longer = max(len(old), len(new))
    overlap = (len(new) - len(came)) / longer if longer else 1.0
    return Change(question.id, question.after, overlap, came, went)
