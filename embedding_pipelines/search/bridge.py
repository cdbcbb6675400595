"""The bridge by which queries of another model reach a release's table, on the side of searches."""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass

from embedding_pipelines.errors import StoreError
from embedding_pipelines.files import read_json
from embedding_pipelines.releases import Release
from embedding_pipelines.space import Space
from embedding_pipelines.storage.warehouse import PipelineFolder
from embedding_pipelines.vectors import Vectors


@dataclass(frozen=True)
class ReleaseBridge:
    """The bridge to a release's space, as `migrate bridge` has put it on record."""

    source: str  # the id of the space that it begins in
    retention: float
    map: Callable[[Vectors], Vectors]

    def note(self, space: Space) -> str:
        """What is to be said of searches across it from this space, in which it begins."""
        return (
            f"Searched across a bridge from {space.title}, which keeps "
            f"{self.retention:.1%} of recall@10."
        )


def bridge_to(folder: PipelineFolder, release: Release) -> ReleaseBridge | None:
    """None without one. Raises StoreError if it is damaged."""
    record = read_json(folder.bridge.with_suffix(".json"))
    if record is None or record["to"] != release.space.with_codec(None).id:
        return None
    from embedding_pipelines.metrics.bridge import Bridge

    try:
        bridge = Bridge.from_bytes(folder.bridge.read_bytes())
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise StoreError(
            f"{folder.bridge} is damaged: {error}. Fit it anew: `embedding-pipelines migrate "
            f"{folder.folder.name} bridge`."
        ) from error
    return ReleaseBridge(record["from"], record["retention"], bridge.map)
