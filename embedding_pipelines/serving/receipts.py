"""Keeps receipts of some searches, as the pipeline's file says, for its checks to learn from."""

import asyncio
import logging
import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from embedding_pipelines.errors import EmbeddingPipelinesError
from embedding_pipelines.ranking import Filter
from embedding_pipelines.serving.server import Server
from embedding_pipelines.storage.receipts import Receipts

if TYPE_CHECKING:
    from embedding_pipelines.search import SearchResult

log = logging.getLogger(__name__)


async def keep_receipts(
    server: Server,
    name: str,
    results: Sequence["SearchResult"],
    k: int,
    filter: Filter | None,
    seconds_left: float,
) -> list[str | None]:
    """The ids of the receipts of a pipeline's answers, None for those of which none is kept. An
    answer does not fail for its receipt, nor comes late for it: what cannot be written while
    somebody waits is a warning in the log."""
    served = (await server.served()).get(name)
    share = served.receipts.share if served else 0.0
    picks = [random.random() < share for _ in results]
    if served is None or not any(picks):
        return [None] * len(results)
    receipts = Receipts(server.warehouse.pipeline(name).folder)
    keeps_text = served.receipts.keep == "text"

    def write() -> list[str | None]:
        return [
            receipts.add(
                result.query,
                [hit.document_id for hit in result.hits],
                release=result.release,
                mode=result.mode,
                k=k,
                filter=filter,
                keeps_text=keeps_text,
            )
            if keeps
            else None
            for result, keeps in zip(results, picks, strict=True)
        ]

    try:
        async with asyncio.timeout(None if math.isinf(seconds_left) else seconds_left):
            return await asyncio.to_thread(write)
    except TimeoutError:
        log.warning("%s: the receipt of a search was not written in time", name)
        return [None] * len(results)
    except (EmbeddingPipelinesError, OSError) as error:
        log.warning("%s: no receipt was kept of a search: %s", name, error)
        return [None] * len(results)
