"""The model was given every token of every text."""

from embedding_pipelines.quality.base import Candidate, Check, Outcome


class ModelSeesAllText(Check):
    def evaluate(self, candidate: Candidate) -> Outcome:
        unseen = candidate.unseen_tokens
        statistics = {"tokens_unseen": unseen}
        if not unseen:
            return self.outcome(True, "The model was given all tokens of all texts.", statistics)
        return self.weakness(
            f"The model never saw {unseen:,} tokens, so no search finds what they say: "
            "`preprocessing.chunk` is null, and documents were cut at the model's limit. Leave "
            "chunk out to have them cut into several chunks.",
            statistics,
        )
