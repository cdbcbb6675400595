"""The index finds what a comparison with every row finds."""

from embedding_pipelines.quality.base import Candidate, Check, Outcome

LEAST_RECALL = 0.95  # every index with its default refine has 0.979 and more


class IndexFindsTheNearest(Check):
    def evaluate(self, candidate: Candidate) -> Outcome:
        recall = candidate.metrics.get("index_recall_at_10")
        if recall is None:
            return self.outcome(True, "Skipped: no ANN index (search is exact or rescored).")
        passed = recall >= LEAST_RECALL
        sentence = f"The index finds {recall:.1%} of the exact ten nearest codes"
        if not passed:
            sentence += f"; {LEAST_RECALL:.0%} is the least. Raise store.nprobes or store.refine"
        return self.outcome(passed, f"{sentence}.", {"index_recall_at_10": recall})
