"""What a machine keeps for itself of documents that another one has forgotten."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from embedding_pipelines.echoes import forget_echoes
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.metrics.known_items import known_item
from embedding_pipelines.schemas import IMAGE, PERCEPTUAL, TEXT, URI
from embedding_pipelines.storage.forgotten import Forgotten
from embedding_pipelines.storage.warehouse import NEW_LINE, PipelineFolder, Warehouse

TEXTS = {
    "gone": "Ada lives in the blue house. It stands behind the old mill by the river.",
    "other": "The fleet left the harbour at dawn. Nobody saw it return in the autumn.",
}


def write_chunks(folder: PipelineFolder, contents: dict[str, tuple[str, str | None]]) -> None:
    """A shard of these documents: a text and perhaps an image of each."""
    columns: dict[str, list[str | None]] = {
        "document_id": [*contents],
        TEXT: [text for text, _ in contents.values()],
    }
    if any(image for _, image in contents.values()):
        columns[IMAGE] = [image for _, image in contents.values()]
        columns |= {name: [*contents] for name in (URI, PERCEPTUAL)}
    batch = pa.RecordBatch.from_pydict(columns)
    folder.chunks.write("b00", batch.schema, [batch], "", "", {})


def left_in_cache(warehouse: Warehouse, keys: dict[str, bytes], gone: str) -> set[str]:
    """The names of those keys that a cache which held all of them has after a forgetting."""
    with EmbeddingCache(warehouse.cache) as cache:
        cache.put_many(list(keys.values()), np.ones((len(keys), 4), np.float32), "a space")
        forgotten = Forgotten("00" * 16, []).with_more({"id": [gone]})
        forget_echoes(warehouse, "p", forgotten)
        hits = cache.get_many(list(keys.values()), 4)
    return {name for name, key in keys.items() if key in hits}


def test_vectors_of_images_go_and_those_that_another_document_has_stay(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    images = {"gone": ("", "0a" * 16), "twin": ("a caption", "0b" * 16), "other": ("", "0b" * 16)}
    write_chunks(warehouse.pipeline("p"), images)
    keys = {
        name: EmbeddingCache.key("a space", "image", image)
        for name, (_, image) in images.items()
        if image
    }
    assert left_in_cache(warehouse, keys, "gone") == {"twin", "other"}
    assert left_in_cache(warehouse, keys, "twin") == {"gone", "twin", "other"}


def test_queries_that_checks_took_from_a_text_go_with_it(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    write_chunks(warehouse.pipeline("p"), {name: (text, None) for name, text in TEXTS.items()})
    queries = {name: known_item(text) for name, text in TEXTS.items()}
    keys = {
        name: EmbeddingCache.key("a space", "query", query)
        for name, query in queries.items()
        if query
    }
    assert left_in_cache(warehouse, keys, "gone") == {"other"}


def test_texts_as_the_line_to_come_has_cut_them_go_too(tmp_path: Path) -> None:
    """Of a pipeline that migrates, which has no release of that line here."""
    warehouse = Warehouse(tmp_path)
    write_chunks(warehouse.pipeline("p"), {name: (text, None) for name, text in TEXTS.items()})
    halves = {name: text.partition(". ")[2] for name, text in TEXTS.items()}
    new_line = warehouse.pipeline("p", NEW_LINE)
    write_chunks(new_line, {name: (half, None) for name, half in halves.items()})
    keys = {name: EmbeddingCache.key("a space", "document", half) for name, half in halves.items()}
    assert left_in_cache(warehouse, keys, "gone") == {"other"}
