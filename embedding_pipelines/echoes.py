"""What this machine keeps for itself of documents that another one has forgotten: receipts of
searches, cached vectors, the report, how the last step ended. It goes while the copy here still has
their texts; a moment later nobody has.
"""

import contextlib
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.errors import StoreError
from embedding_pipelines.files import delete, list_files
from embedding_pipelines.releases import read_history, read_releases
from embedding_pipelines.schemas import TEXT
from embedding_pipelines.storage.forgotten import Forgotten
from embedding_pipelines.storage.quotes import Needles
from embedding_pipelines.storage.receipts import Receipts, forget_quotes
from embedding_pipelines.storage.warehouse import PipelineFolder, Warehouse


def forget_echoes(warehouse: Warehouse, name: str, forgotten: Forgotten) -> None:
    """Erase it, of a pipeline whose list of what is forgotten has grown elsewhere."""
    folder, known = warehouse.pipeline(name), dict[str, bool]()

    def is_gone(document: str) -> bool:
        if document not in known:
            known[document] = forgotten.has("id", document)
        return known[document]

    texts = _own_texts(folder, is_gone)
    needles = Needles(texts)
    Receipts(folder.folder).forget_unseen(is_gone, needles.are_quoted)
    forget_quotes(warehouse.pipelines, needles.are_quoted)
    if texts and warehouse.cache.exists():
        with EmbeddingCache(warehouse.cache) as cache:
            cache.remove_many(
                [
                    EmbeddingCache.key(space, kind, text)
                    for space in cache.spaces() | _spaces(folder)
                    for kind in ("document", "query")
                    for text in texts
                ]
            )
    for path in (warehouse.root / "reports" / f"{name}.html", folder.activity):
        delete(path)


def _own_texts(folder: PipelineFolder, is_gone: Callable[[str], bool]) -> set[str]:
    """The texts that documents which are gone have here, and no other document has."""
    own, shared = set[str](), set[str]()
    for gone, _ in _split(folder, is_gone):
        own.update(gone[TEXT].to_pylist())
    texts = pa.array(sorted(own), pa.string())
    for _, others in _split(folder, is_gone) if own else ():
        shared.update(others[TEXT].filter(pc.is_in(others[TEXT], texts)).to_pylist())
    return own - shared


def _split(
    folder: PipelineFolder, is_gone: Callable[[str], bool]
) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
    """Rows of documents that are gone, and of others."""
    for rows in _rows(folder):
        mask = pa.array([is_gone(name) for name in rows["document_id"].to_pylist()], pa.bool_())
        yield rows.filter(mask), rows.filter(pc.invert(mask))


def _rows(folder: PipelineFolder) -> Iterator[pa.RecordBatch]:
    """Ids and texts of all rows that are here, as far as they can be read: those of releases, of
    documents and of chunks."""
    columns, unreadable = ["document_id", TEXT], (StoreError, OSError)
    with contextlib.suppress(*unreadable):
        for release in read_releases(folder).releases:
            with contextlib.suppress(*unreadable):
                table = release.spec.store.table(folder.tables, release.table)
                yield from table.scan(columns, version=release.version)
    for shards in (folder.documents, folder.chunks):
        for manifest in list_files(shards.folder, "b*.json"):
            with contextlib.suppress(*unreadable):
                yield from shards.read(manifest.stem, columns)


def _spaces(folder: PipelineFolder) -> set[str]:
    """Those of all releases that are on record."""
    with contextlib.suppress(StoreError):
        own = {entry.space.with_codec(None).id for entry in read_releases(folder).releases}
        return own | {str(line["space"]) for line in read_history(folder)[0] if "space" in line}
    return set()
