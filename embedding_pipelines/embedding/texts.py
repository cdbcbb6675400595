"""Any number of texts at once, through the cache: queries, and what quality is measured with."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from embedding_pipelines.embedding.budget import BudgetTracker
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.embedding.embed import embed
from embedding_pipelines.providers.base import InputType, Provider, Vectors

WINDOW = 4_096  # texts that are handed to `embed` at once


def embed_texts(
    provider: Provider,
    cache: EmbeddingCache,
    texts: Sequence[str],
    input_type: InputType,
    budget: BudgetTracker | None = None,
) -> Vectors:
    """Vectors float32[len(texts), d] through the cache, NaN for what the provider refuses. Raises
    as `embed`."""
    tokenizer = provider.tokenizer()
    parts = [np.empty((0, provider.space.dimensions), np.float32)]
    batches = (
        pa.RecordBatch.from_pydict(
            {"text": list(window), "tokens": [len(tokenizer.encode(text).ids) for text in window]}
        )
        for start in range(0, len(texts), WINDOW)
        if (window := texts[start : start + WINDOW])
    )
    for made in embed(batches, provider, cache, input_type, lambda tokens: None, budget):
        vectors = made.vectors.copy()
        vectors[list(made.rejected)] = np.nan
        parts.append(vectors)
    return np.concatenate(parts)
