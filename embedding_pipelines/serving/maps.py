"""The map of a live release for the search page: where each chunk stands on a plane.

It is the report's map, with the same places, kept in the warehouse for the next release. A first map
of 50,000 chunks takes half a minute of one processor; while it is made, searches are answered.
"""

import threading

import numpy as np

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.progress import Silent
from embedding_pipelines.releases import find_released, live_release
from embedding_pipelines.report.map import place_points, read_points
from embedding_pipelines.report.searches import cut
from embedding_pipelines.serving.wire import MapResponse
from embedding_pipelines.storage.warehouse import Warehouse

DIGITS = 3  # after the point: finer than a screen


class Maps:
    """The newest map of each pipeline that somebody looked at."""

    def __init__(self, warehouse: Warehouse) -> None:
        self._warehouse = warehouse
        self._maps: dict[str, MapResponse] = {}
        self._lock = threading.Lock()  # one is made at a time

    def get(self, pipeline: str) -> MapResponse:
        """The map of the live release; to be called in a thread. Raises ConfigError for a pipeline
        that there is not, ReleaseError without a release."""
        name = find_released(self._warehouse, pipeline)
        folder = self._warehouse.pipeline(name)
        release = live_release(folder)
        with self._lock:
            before = self._maps.get(name)
            if before is None or before.release != release.number:
                codec = CodecChain.load(folder.codecs / release.codec)
                table = release.spec.store.table(self._warehouse.tables, release.table)
                points = read_points(table, release, codec, Silent())
                xy = np.round(place_points(folder, release, points, Silent()).xy, DIGITS)
                self._maps[name] = MapResponse(
                    release=release.number,
                    rows=release.rows,
                    chunks=points.chunk_ids,
                    documents=points.document_ids,
                    texts=[cut(text) for text in points.texts],
                    x=xy[:, 0].tolist(),
                    y=xy[:, 1].tolist(),
                )
            return self._maps[name]
