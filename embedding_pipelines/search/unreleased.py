"""Searches by words before the first release: of the texts as they are cut so far."""

import time

import pyarrow as pa

from embedding_pipelines.access import Access, Permitted, Principals
from embedding_pipelines.errors import ReleaseError, StoreError
from embedding_pipelines.overlay import searched_release
from embedding_pipelines.ranking import Filter
from embedding_pipelines.releases import find_released, no_release
from embedding_pipelines.schemas import CHUNK_COLUMNS, TABLE_TYPES
from embedding_pipelines.search.queries import check_k, clean_query
from embedding_pipelines.search.results import HIT_COLUMNS, SearchResult, hits_of
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.spec.search import Mode
from embedding_pipelines.storage.warehouse import PipelineFolder, Warehouse

TEXTS_SHARE = 0.1  # of the free memory that unreleased texts may take, compressed


class UnreleasedTexts:
    """The texts of a pipeline without a release, as they have been cut so far, searched by words:
    vectors, checks and release may take hours. They are in memory alone.

    Raises ConfigError for a pipeline that there is not, ReleaseError before its texts are cut.
    """

    def __init__(self, warehouse: Warehouse, pipeline: str | int) -> None:
        from embedding_pipelines.memory import available_bytes

        name = find_released(warehouse, pipeline)
        self.spec, folder = find_pipeline(name, warehouse.home), warehouse.pipeline(name)
        manifests = folder.chunks.manifests(self.spec.partition_names)
        if not manifests:
            raise no_release(folder)
        self.digests = tuple(manifest.digest for manifest in manifests)
        free = available_bytes()
        if free is not None and sum(each.size_bytes for each in manifests) > free * TEXTS_SHARE:
            raise StoreError(
                f"Pipeline {name!r} has no release yet, and its texts are too many to be searched in "
                f"memory. Run `embedding-pipelines run {name}` to its end."
            )
        rows = _chunks_of(self.spec, folder)
        self._texts = self.spec.store.in_memory(rows, self.spec.search.language)
        self._access = Access(warehouse.home, name, self.spec.permissions)
        self.note = (
            f"Pipeline {name!r} has no release yet: searched are its texts as they are cut so far "
            f"({len(manifests)} of {self.spec.partitions} partitions), unchecked."
        )

    def search(
        self,
        query: str,
        k: int = 10,
        filter: Filter | None = None,
        principals: Principals = None,
    ) -> SearchResult:
        """As `Searcher.search` by text; the release's number is 0."""
        started = time.perf_counter()
        check_k(k)
        visible = self._access.visible(principals)
        texts = self._texts if visible is None else Permitted(self._texts, visible)
        text = clean_query(self.spec, query, "The query")
        names = self.spec.source.table_names
        rows = texts.search_text(text, k, filter, 1, names)
        rows = rows.rename_columns(
            ["score" if name == "_score" else name for name in rows.schema.names]
        )
        result = SearchResult(
            pipeline=self.spec.name,
            release=0,
            space_id="",
            query=query,
            mode="text",
            hits=hits_of(rows),
            milliseconds=round((time.perf_counter() - started) * 1000, 3),
            notes=[self.note, *(visible.notes if visible else [])],
        )
        return result.with_types(self.spec.source.metadata_types)


def _chunks_of(spec: PipelineSpec, folder: PipelineFolder) -> pa.Table:
    """The chunks as they are cut so far, with the columns that hits have."""
    metadata = {name: TABLE_TYPES[kind] for name, kind in spec.source.metadata_types.items()}
    columns = [*(name for name in HIT_COLUMNS if name != "score"), *metadata]
    types = {**CHUNK_COLUMNS, **metadata}
    schema = pa.schema([(name, types[name]) for name in columns])
    batches = [
        pa.RecordBatch.from_arrays([batch[column] for column in columns], schema=schema)
        for partition in spec.partition_names
        for batch in folder.chunks.read(partition, columns)
    ]
    return pa.Table.from_batches(batches, schema)


def is_unreleased(warehouse: Warehouse, pipeline: str | int, mode: Mode | None) -> bool:
    """Whether a search by `mode`, else the pipeline file's, is one of texts that are cut and neither
    released nor pushed."""
    name = find_released(warehouse, pipeline)
    if mode in ("vector", "hybrid"):
        return False
    try:
        searched_release(warehouse, warehouse.pipeline(name))
        return False
    except ReleaseError:
        return (mode or find_pipeline(name, warehouse.home).search.mode) == "text"
