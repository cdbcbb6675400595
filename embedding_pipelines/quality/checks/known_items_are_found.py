"""Queries from the corpus find the documents they were taken from."""

import numpy as np

from embedding_pipelines.metrics.health import NEAR_DUPLICATE, SHORT_TOKENS
from embedding_pipelines.providers.base import InputType
from embedding_pipelines.quality.base import MIN_ROWS, Candidate, Check, Outcome
from embedding_pipelines.vectors import Vectors, unit

LEAST_RECALL = 0.1  # queries of another model find their document by chance: 10 / rows
MANY = 0.5  # a share of the chunks that explains why queries do not tell them apart
CLEAR = 0.01  # cosine by which a canary is nearer to itself than to another; equal models: 0.2


class KnownItemsAreFound(Check):
    """It blocks if queries and documents do not belong together, which the canaries tell. If they
    do, the texts are hard to tell apart, which a user has to know and may want to release."""

    def evaluate(self, candidate: Candidate) -> Outcome:
        rows, queries = candidate.rows, len(candidate.query_metrics.get("known_item_mrr", {}))
        recall = candidate.metrics.get("known_item_recall")
        if rows < MIN_ROWS:
            return self.too_few(rows)
        if recall is None:
            return self.outcome(True, "Skipped: there are no known items to search for.")
        statistics = {"known_item_recall": recall, "queries": queries}
        sentence = f"{recall:.0%} of {queries} queries from the corpus find their document among "
        sentence += "the first ten"
        if recall >= LEAST_RECALL:
            return self.outcome(True, f"{sentence}.", statistics)
        sentence += f" (by chance: {10 / rows:.1%})"
        if candidate.run.spec.source.has_images:
            return self.weakness(f"{sentence}. {FAR_CAPTIONS}", statistics)
        recognized, canaries = _recognized(candidate)
        statistics |= {"canaries_recognized": recognized, "canaries": canaries}
        cause = _cause_in_texts(candidate.metrics)
        if recognized > canaries / 2:  # by chance one of eight
            sentence += (
                f". The model is not the cause: it recognizes {recognized} of {canaries} fixed texts, "
                f"embedded as queries and as documents. {cause or UNCLEAR}"
            )
            return self.weakness(sentence, statistics)
        if canaries:
            sentence += (
                f". Of {canaries} fixed texts, embedded as queries and as documents, only {recognized} "
                "are nearest to themselves: queries and documents are not embedded by the same "
                "model, or it gives all texts about the same vector. See that the model, or the "
                "server behind it, is the same for both, and that model.prompts are its own."
            )
            return self.outcome(False, sentence, statistics)
        if cause:
            return self.weakness(f"{sentence}. {cause}", statistics)
        sentence += (
            ": perhaps queries and documents are not embedded by the same model. The check "
            "`provider_is_unchanged` has not told, since it is off or could not run: turn it on "
            "and run again."
        )
        return self.outcome(False, sentence, statistics)


FAR_CAPTIONS = (
    "The queries are captions, and what is found are pictures: captions that say other things than "
    "the pictures show (names, dates), or in a language that the model does not know, find none."
)
UNCLEAR = (
    "The queries say too little of their texts (codes, numbers, a language that the model does not "
    "know): try a model for such texts, or name other fields in source.text."
)


def _recognized(candidate: Candidate) -> tuple[int, int]:
    """How many canaries are, as queries, clearly nearest to themselves as documents; and of how
    many: 0 if today's vectors are not known."""
    vectors: dict[InputType, Vectors] = candidate.collected.get("provider_is_unchanged", {})
    if not vectors:
        return 0, 0
    queries, documents = vectors["query"], vectors["document"]
    sound = np.isfinite(queries).all(axis=1) & np.isfinite(documents).all(axis=1)
    if sound.sum() < 2:
        return 0, 0
    cosines = unit(queries[sound]) @ unit(documents[sound]).T
    own = cosines.diagonal().copy()
    np.fill_diagonal(cosines, -np.inf)
    return int((own >= cosines.max(axis=1) + CLEAR).sum()), int(sound.sum())


def _cause_in_texts(metrics: dict[str, float]) -> str:
    """What makes the texts hard to tell apart, with its figure; empty if nothing is known to."""
    near, short = metrics.get("near_duplicate_rate", 0), metrics.get("short_rate", 0)
    recall = metrics.get("recall_at_10", 1)
    if near >= MANY:
        return (
            f"{near:.0%} of the sampled chunks have another one at a cosine of {NEAR_DUPLICATE} or "
            "more: the texts are nearly the same, and no query tells one from its likes. Remove "
            "doubles, or leave out of source.text what stands in all of them."
        )
    if recall < MANY:
        return (
            f"Searches find {recall:.0%} of what is nearest in the model's own space: compression or "
            "index lose the rest. Compress less (`embedding-pipelines optimize` measures it)."
        )
    if short >= MANY:
        return (
            f"{short:.0%} of the chunks have {SHORT_TOKENS} tokens or fewer by the model's tokenizer: "
            "they are short, or of a script that it does not know. Name more fields in source.text, "
            "or use a model for their language."
        )
    return ""
