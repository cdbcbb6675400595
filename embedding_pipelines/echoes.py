"""What this machine keeps for itself of documents that another one has forgotten: receipts of
searches, cached vectors, the report, how the last step ended. It goes while the copy here still has
their texts; a moment later nobody has.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.errors import StoreError
from embedding_pipelines.files import delete, list_files
from embedding_pipelines.metrics.known_items import known_item
from embedding_pipelines.providers.base import InputType
from embedding_pipelines.releases import read_history, read_releases
from embedding_pipelines.schemas import IMAGE, TEXT, has_images
from embedding_pipelines.storage.forgotten import Forgotten
from embedding_pipelines.storage.quotes import Needles
from embedding_pipelines.storage.receipts import Receipts, forget_quotes
from embedding_pipelines.storage.warehouse import NEW_LINE, PipelineFolder, Warehouse

KINDS: tuple[InputType | Literal["image"], ...] = ("document", "query", "image")


def forget_echoes(warehouse: Warehouse, name: str, forgotten: Forgotten) -> None:
    """Erase it, of a pipeline whose list of what is forgotten has grown elsewhere."""
    folder, answers = warehouse.pipeline(name), dict[str, bool]()

    def is_gone(document: str) -> bool:
        if document not in answers:
            answers[document] = forgotten.has("id", document)
        return answers[document]

    lines = [warehouse.pipeline(name, line) for line in ("", NEW_LINE)]
    contents = _own_contents(lines, is_gone)
    needles = Needles(contents)
    Receipts(folder.folder).forget_unseen(is_gone, needles.are_quoted)
    forget_quotes(warehouse.pipelines, needles.are_quoted)
    if contents and warehouse.cache.exists():
        with EmbeddingCache(warehouse.cache) as cache:
            cache.remove_many(
                [
                    EmbeddingCache.key(space, kind, content)
                    for space in cache.spaces() | _spaces(folder)
                    for kind in KINDS
                    for content in contents | _queries(contents)
                ]
            )
    report = warehouse.root / "reports" / f"{name}.html"
    for path in (report, folder.activity, folder.quarantine):
        delete(path)


def _own_contents(lines: list[PipelineFolder], is_gone: Callable[[str], bool]) -> set[str]:
    """The texts, and the digests of images' pixels, that documents which are gone have here, and no
    other document has."""
    own, shared = set[str](), set[str]()
    for gone, _ in _split(lines, is_gone):
        for column in gone.columns[1:]:
            own.update(filter(None, column.to_pylist()))  # not all images have a caption
    contents = pa.array(sorted(own), pa.string())
    for _, others in _split(lines, is_gone) if own else ():
        for column in others.columns[1:]:
            shared.update(column.filter(pc.is_in(column, contents)).to_pylist())
    return own - shared


def _queries(texts: set[str]) -> set[str]:
    """The queries that checks take from texts, whose first line may be a title."""
    queries = {
        known_item(text, title) for text in texts for title in (None, text.partition("\n")[0])
    }
    return {query for query in queries if query is not None}


def _split(
    lines: list[PipelineFolder], is_gone: Callable[[str], bool]
) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
    """Rows of documents that are gone, and of others."""
    for rows in _rows(lines):
        mask = pa.array([is_gone(name) for name in rows["document_id"].to_pylist()], pa.bool_())
        yield rows.filter(mask), rows.filter(pc.invert(mask))


def _rows(lines: list[PipelineFolder]) -> Iterator[pa.RecordBatch]:
    """Ids, texts and, where there are any, images of all rows that are here, as far as they can be
    read: those of releases, of documents and of chunks."""
    unreadable = (StoreError, OSError)
    with contextlib.suppress(*unreadable):
        for release in read_releases(lines[0]).releases:
            with contextlib.suppress(*unreadable):
                table = release.spec.store.table(lines[0].tables, release.table)
                columns = _columns(table.schema(release.version))
                yield from table.scan(columns, version=release.version)
    for shards in (shards for line in lines for shards in (line.documents, line.chunks)):
        for manifest in list_files(shards.folder, "b*.json"):
            with contextlib.suppress(*unreadable):
                schema = shards.schema(manifest.stem)
                if schema is not None:
                    yield from shards.read(manifest.stem, _columns(schema))


def _columns(schema: pa.Schema) -> list[str]:
    return ["document_id", TEXT, *([IMAGE] if has_images(schema) else [])]


def _spaces(folder: PipelineFolder) -> set[str]:
    """Those of all releases that are on record."""
    with contextlib.suppress(StoreError):
        own = {entry.space.with_codec(None).id for entry in read_releases(folder).releases}
        return own | {str(line["space"]) for line in read_history(folder)[0] if "space" in line}
    return set()
