"""The model's vocabulary has the tokens of the texts."""

from dataclasses import replace

from embedding_pipelines.preprocessing.tokens import TELL_UNKNOWN
from embedding_pipelines.quality.base import Candidate, Check, Outcome

# Of all tokens: texts of which a model reads less than half are told apart by little else than
# their punctuation. Below, it only warns.
BLOCKING_SHARE = 0.5


class ModelKnowsTheTexts(Check):
    def evaluate(self, candidate: Candidate) -> Outcome:
        share = candidate.metrics.get("unknown_token_share")
        if share is None:
            return self.outcome(True, "Skipped: the model's own vocabulary is not at hand.")
        sentence = f"{share:.1%} of the tokens are unknown to the model"
        if share >= TELL_UNKNOWN:
            sentence += (
                f" (usual: less than {TELL_UNKNOWN:.0%}): it reads nothing in them, and texts of "
                "such words have much the same vector. Choose a model that was trained on their "
                "language"
            )
        outcome = self.outcome(share < TELL_UNKNOWN, f"{sentence}.", {"unknown_token_share": share})
        return outcome if share >= BLOCKING_SHARE else replace(outcome, effect="warn")
