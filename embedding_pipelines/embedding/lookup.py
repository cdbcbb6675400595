"""Find the texts and images of a stream that are not in the cache, before any is requested.

`embed` looks its batches up by itself: it needs the vectors of hits too, and knows what is already
requested.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from embedding_pipelines.embedding.cache import EmbeddingCache, content_keys
from embedding_pipelines.providers.base import InputType
from embedding_pipelines.space import Space


@dataclass(frozen=True)
class Lookup:
    """The texts of one batch that no batch before it had."""

    hits: int  # how many of them are in the cache
    misses: dict[bytes, tuple[str, int]]  # the others by key: text and tokens, of images 0


def look_up(
    batches: Iterable[pa.RecordBatch],
    space: Space | None,
    input_type: InputType,
    cache: EmbeddingCache,
) -> Iterator[Lookup]:
    """Each batch in turn, each text once. Batches need the columns `tokens` and those that say what
    is embedded.

    `space` is None for a model that is still to be trained: nothing is in the cache for it.
    """
    earlier: set[bytes] = set()
    space_id = space.id if space else ""
    for batch in batches:
        texts = zip(batch["text"].to_pylist(), batch["tokens"].to_pylist(), strict=True)
        keyed = dict(zip(content_keys(space_id, input_type, batch), texts, strict=True))
        new = {key: text for key, text in keyed.items() if key not in earlier}
        earlier.update(new)
        hits = cache.get_many(list(new), space.dimensions) if space else {}
        yield Lookup(len(hits), {key: text for key, text in new.items() if key not in hits})
