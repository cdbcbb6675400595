"""What the cache does not know of a stream of texts."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.embedding.lookup import look_up
from embedding_pipelines.providers.hashing import Hashing

SPACE = Hashing(dimensions=8).space


def batch(*texts: str) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(
        {"text": list(texts), "tokens": [len(text) for text in texts]}
    )


def test_each_text_is_told_once_whether_it_is_known_or_not(tmp_path: Path) -> None:
    with EmbeddingCache(tmp_path / "cache.sqlite") as cache:
        known = cache.key(SPACE.id, "document", "known")
        cache.put_many([known], np.ones((1, 8), np.float32))
        batches = [
            batch("known", "new", "known", "new"),
            batch("newer", "new", "known"),
            batch("newer"),
            batch(),
        ]
        found = list(look_up(batches, SPACE, "document", cache))
        assert [entry.known for entry in found] == [1, 0, 0, 0]
        assert [list(entry.unknown.values()) for entry in found] == [
            [("new", 3)],
            [("newer", 5)],
            [],
            [],
        ]
        assert list(found[0].unknown) == [cache.key(SPACE.id, "document", "new")]
        (asked,) = look_up(
            [batch("known")], SPACE, "query", cache
        )  # another input type is another vector
        assert asked.known == 0
