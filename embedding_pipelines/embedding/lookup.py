"""Which texts of a stream the cache does not know: what a run would ask for, told before anybody is
asked.

`embed` looks its windows up itself, for it needs more: the vectors of what is known, and what is
out already.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.providers.base import InputType
from embedding_pipelines.space import Space


@dataclass(frozen=True)
class LookedUp:
    """The texts of one batch that no batch before it had."""

    known: int  # how many of them the cache has
    unknown: dict[bytes, tuple[str, int]]  # by key: text and tokens


def look_up(
    batches: Iterable[pa.RecordBatch], space: Space, input_type: InputType, cache: EmbeddingCache
) -> Iterator[LookedUp]:
    """Each batch in turn, each text once. Batches need the columns `text` and `tokens`."""
    seen: set[bytes] = set()
    for batch in batches:
        texts = zip(batch["text"].to_pylist(), batch["tokens"].to_pylist(), strict=True)
        keyed = {
            cache.key(space.id, input_type, text): (text, tokens)
            for text, tokens in dict(texts).items()
        }
        new = {key: text for key, text in keyed.items() if key not in seen}
        seen.update(new)
        known = cache.get_many(list(new), space.dimensions)
        yield LookedUp(len(known), {key: text for key, text in new.items() if key not in known})
