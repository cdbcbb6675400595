"""Queries from the corpus find the documents they were taken from."""

from embedding_pipelines.quality.base import MIN_ROWS, Candidate, Check, Outcome

LEAST_RECALL = 0.1  # queries of another model find their document by chance: 10 / rows


class KnownItemsAreFound(Check):
    def evaluate(self, candidate: Candidate) -> Outcome:
        rows, queries = candidate.rows, len(candidate.query_metrics.get("known_item_mrr", {}))
        recall = candidate.metrics.get("known_item_recall")
        if rows < MIN_ROWS:
            return self.too_few(rows)
        if recall is None:
            return self.outcome(True, "Skipped: there are no known items to search for.")
        passed, share = recall >= LEAST_RECALL, f"{recall:.0%} of {queries}"
        sentence = f"{share} queries from the corpus find their document among the first ten"
        if not passed:
            sentence += (
                f", and chance alone finds {10 / rows:.1%}: queries and documents are not embedded "
                "by the same model, or not as it needs them. If the texts are no language (codes, "
                "numbers), set evaluation.checks: {known_items_are_found: warn}"
            )
        statistics = {"known_item_recall": recall, "queries": queries}
        return self.outcome(passed, f"{sentence}.", statistics)
