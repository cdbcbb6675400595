"""input types: whether a model that tells queries from documents is told which is which. Searches
find less if it is not."""

from typing import get_args

import numpy as np

from embedding_pipelines.embedding.budget import BudgetTracker
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.embedding.sanity import UNLIKE_TEXTS
from embedding_pipelines.metrics.input_types import same_for_both_input_types
from embedding_pipelines.providers.base import EmbeddingModel, InputType
from embedding_pipelines.providers.common.prompts import prompts_of
from embedding_pipelines.quality.check import Check
from embedding_pipelines.quality.queries import embed_texts
from embedding_pipelines.vectors import cosine


def input_types_differ(
    model: EmbeddingModel, cache: EmbeddingCache, budget: BudgetTracker
) -> Check:
    """Whether the prompts or input types that the model wants reach it: the same texts in both
    input types tell.

    They are asked for once per space, through the cache. Raises as `embed`.
    """
    prompts = model.space.prompts
    if prompts.get("query", "") == prompts.get("document", ""):
        wanted = prompts_of(model.space.model)
        if wanted.get("query", "") == wanted.get("document", ""):
            return Check("", True, "The model makes no difference between queries and documents.")
        return Check(
            "",
            False,
            f"{model.space.model} wants {wanted.get('query', '')!r} before a query and "
            f"{wanted.get('document', '')!r} before a document, and is told neither: searches find less so. "
            "Leave out model.prompts, or give these.",
        )
    found = {
        input_type: embed_texts(model, cache, UNLIKE_TEXTS, input_type, budget)
        for input_type in get_args(InputType)
    }
    if not np.isfinite([found[input_type] for input_type in found]).all():
        return Check(
            "", True, "Not judged: the model has no vectors for the texts that would tell."
        )
    fault = same_for_both_input_types(found["query"], found["document"], prompts)
    likeness = float(cosine(found["query"], found["document"]).mean())
    return Check(
        "",
        fault is None,
        fault or "Queries and documents get vectors of their own.",
        {"cosine": likeness},
    )
