"""The map of a live release for the search page: where each chunk stands on a plane.

It is the report's map, with the same places, kept in the warehouse for the next release. A first map
of 50,000 chunks takes half a minute of one processor; while it is made, searches are answered.
"""

import asyncio
import contextlib
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from embedding_pipelines.access import Visible
from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.progress import Silent
from embedding_pipelines.releases import Release, find_released, live_release
from embedding_pipelines.report.layout import MAX_POINTS
from embedding_pipelines.report.map import place_points, read_points
from embedding_pipelines.report.searches import cut
from embedding_pipelines.serving.admission import Line
from embedding_pipelines.serving.wire import MapResponse
from embedding_pipelines.storage.pushed import pushed_log
from embedding_pipelines.storage.warehouse import Warehouse

DIGITS = 3  # after the point: finer than a screen


class Maps:
    """The newest map of each pipeline that somebody looked at."""

    def __init__(self, warehouse: Warehouse) -> None:
        self._warehouse = warehouse
        self.line = Line()  # chunks that are to be placed
        self._coming: set[tuple[str, int]] = set()  # maps that are being made: pipeline and release
        self._maps: dict[str, tuple[Release, MapResponse]] = {}
        self._thread = ThreadPoolExecutor(1, "map")  # its own: searches need the others

    def is_coming(self, release: Release) -> bool:
        """Whether the map is being made for somebody else, who waits for it first."""
        return (release.spec.name, release.number) in self._coming

    @contextlib.contextmanager
    def stand(self, release: Release) -> Iterator[None]:
        """In the line, with the chunks that have to be placed before the map is there: what takes the
        time."""
        before, _ = self._maps.get(release.spec.name, (None, None))
        if before == release or self.is_coming(release):
            yield
            return
        name = (release.spec.name, release.number)
        self._coming.add(name)
        try:
            with self.line.stand(min(release.rows, MAX_POINTS)):
                yield
        finally:
            self._coming.discard(name)

    async def get(self, pipeline: str, visible: Visible | None = None) -> MapResponse:
        """The map of the live release, without documents that were replaced or deleted since, or are
        not `visible`. Raises ConfigError for a pipeline that there is not, ReleaseError without a
        release."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._get, pipeline, visible)

    def close(self) -> None:
        """Waits for the map that is made."""
        self._thread.shutdown(cancel_futures=True)

    def _get(self, pipeline: str, visible: Visible | None) -> MapResponse:
        name = find_released(self._warehouse, pipeline)
        folder = self._warehouse.pipeline(name)
        release = live_release(folder)
        before, places = self._maps.get(name, (None, None))
        if (
            places is None or before != release
        ):  # a number comes again where a pipeline is made anew
            codec = CodecChain.load(folder.codecs / release.codec)
            table = release.spec.store.table(self._warehouse.tables, release.table)
            points = read_points(table, release, codec, Silent())
            xy = np.round(place_points(folder, release, points, Silent()).xy, DIGITS)
            places = MapResponse(
                release=release.number,
                rows=release.rows,
                chunks=points.chunk_ids,
                documents=points.document_ids,
                texts=[cut(text) for text in points.texts],
                x=xy[:, 0].tolist(),
                y=xy[:, 1].tolist(),
            )
            self._maps[name] = release, places
        log = pushed_log(self._warehouse, name)
        words = {change.id: change.kind for _, change in log.changes(release.pushed)}
        hidden = {document for document, kind in words.items() if kind != "withdraw"}
        if visible is not None:
            hidden |= {each for each in places.documents if each not in visible}
            places = _without(places, hidden)  # nor how many others there are
            return places.model_copy(update={"rows": len(places.chunks)})
        return _without(places, hidden) if hidden else places


def _without(places: MapResponse, hidden: Collection[str]) -> MapResponse:
    """A map without some documents."""
    rows = [at for at, document in enumerate(places.documents) if document not in hidden]
    names = ("chunks", "documents", "texts", "x", "y")
    return places.model_copy(
        update={name: [getattr(places, name)[at] for at in rows] for name in names}
    )
