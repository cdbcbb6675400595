"""Queries and documents get vectors of their own where the model wants that."""

from collections.abc import Mapping
from typing import get_args

import numpy as np

from embedding_pipelines.embedding.sanity import UNLIKE_TEXTS
from embedding_pipelines.embedding.texts import count_tokens
from embedding_pipelines.providers.base import InputType
from embedding_pipelines.providers.common.prompts import prompts_of
from embedding_pipelines.quality.base import Candidate, Check, Outcome
from embedding_pipelines.run import Run
from embedding_pipelines.vectors import Vectors, cosine

# In any component. The same text differs by less in two batches, and by 1e-2 in two input types.
SAME = 1e-6


class InputTypesDiffer(Check):
    def cost(self, run: Run) -> int:
        if not _differ(run.model.space.prompts):
            return 0
        tokens = count_tokens(UNLIKE_TEXTS, run.model.tokenizer)
        return len(get_args(InputType)) * sum(tokens)

    def collect(self, candidate: Candidate) -> None:
        """The same texts in both input types, through the cache: once per space."""
        if _differ(candidate.run.model.space.prompts):
            candidate.collected[self.name] = {
                input_type: candidate.embed(UNLIKE_TEXTS, input_type)
                for input_type in get_args(InputType)
            }

    def evaluate(self, candidate: Candidate) -> Outcome:
        space = candidate.run.model.space
        vectors: dict[InputType, Vectors] = candidate.collected.get(self.name, {})
        if not vectors:
            prompts = prompts_of(space.model)
            if not _differ(prompts):
                sentence = "The model makes no difference between queries and documents."
                return self.outcome(True, sentence)
            return self.outcome(
                False,
                f"{space.model} needs {prompts.get('query', '')!r} before a query and "
                f"{prompts.get('document', '')!r} before a document, and gets neither: searches "
                "find less. Leave out model.prompts, or give these.",
            )
        queries, documents = vectors["query"], vectors["document"]
        if not np.isfinite([queries, documents]).all():
            return self.outcome(True, "Skipped: the model has no vectors for the texts to compare.")
        statistics = {"cosine": float(cosine(queries, documents).mean())}
        if np.abs(queries - documents).max() >= SAME:
            return self.outcome(True, "Queries and documents get vectors of their own.", statistics)
        return self.outcome(
            False,
            "Queries and documents get the same vectors, though the model should see "
            f"{space.prompts.get('query', '')!r} with a query and "
            f"{space.prompts.get('document', '')!r} with a document: what tells the input types "
            "apart does not reach it, and searches find less than they could. Check the "
            "provider's prompts, or the server that applies them.",
            statistics,
        )


def _differ(prompts: Mapping[str, str]) -> bool:
    """Whether prompts, or the input types that a service takes, tell queries from documents."""
    return prompts.get("query", "") != prompts.get("document", "")
