"""The misses of a stream of texts."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.embedding.lookup import look_up
from embedding_pipelines.providers.hashing import Hashing

SPACE = Hashing(dimensions=8).open(Path.cwd()).space


def batch(*texts: str) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(
        {"text": list(texts), "tokens": [len(text) for text in texts]}
    )


def test_each_text_comes_once_as_a_hit_or_a_miss(tmp_path: Path) -> None:
    with EmbeddingCache(tmp_path / "cache.sqlite") as cache:
        hit = cache.key(SPACE.id, "document", "known")
        cache.put_many([hit], np.ones((1, 8), np.float32), "a space")
        batches = [
            batch("known", "new", "known", "new"),
            batch("newer", "new", "known"),
            batch("newer"),
            batch(),
        ]
        lookups = list(look_up(batches, SPACE, "document", cache))
        assert [entry.hits for entry in lookups] == [1, 0, 0, 0]
        assert [list(entry.misses.values()) for entry in lookups] == [
            [("new", 3)],
            [("newer", 5)],
            [],
            [],
        ]
        assert list(lookups[0].misses) == [cache.key(SPACE.id, "document", "new")]
        (lookup,) = look_up(
            [batch("known")], SPACE, "query", cache
        )  # another input type is another vector
        assert lookup.hits == 0
