"""Whether a model that tells queries from documents is really told which is which."""

from collections.abc import Mapping

import numpy as np

from embedding_pipelines.vectors import Vectors

SAME = 1e-6  # in any component; the same text in two batches differs by more, two input types of one model by 1e-2


def same_for_both_input_types(
    queries: Vectors, documents: Vectors, prompts: Mapping[str, str]
) -> str | None:
    """A sentence if both input types get the same vectors though `prompts` differ by input type;
    None if all is well.

    `queries` and `documents` are float32[n, d] of the same n texts, each embedded in its input
    type; `prompts` are those of their space, or the input types that a service takes. Raises
    ValueError for arrays of unlike shape, or none.
    """
    if queries.shape != documents.shape or queries.ndim != 2 or not queries.size:
        raise ValueError(
            f"Arrays of shape {queries.shape} and {documents.shape} cannot be compared: give the vectors of the same "
            "texts in both input types."
        )
    query, document = prompts.get("query", ""), prompts.get("document", "")
    if query == document or not np.abs(queries - documents).max() < SAME:
        return None
    return (
        f"Queries and documents get the same vectors, though the model should see {query!r} with a query and "
        f"{document!r} with a document: what tells the input types apart does not reach it, and searches find less than they "
        "could. Check the provider's prompts, or the server that applies them."
    )
