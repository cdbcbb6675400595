"""`inline`: in this process, one shard after the other; the default."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from embedding_pipelines.engines.base import Engine, ShardWork


class Inline(Engine):
    """This process."""

    kind: Literal["inline"] = "inline"

    def map_shards(self, work: ShardWork, shards: Sequence[str]) -> Iterator[Any]:
        yield from work.here().work(shards, work.advance)
