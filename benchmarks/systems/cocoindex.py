"""CocoIndex 1: a processing component per document, memoized, rows declared to its LanceDB target.

Its embedder batches by itself what the components ask for at the same time. A document is mounted
as a component of its own, the unit in which CocoIndex remembers; a component per file would embed a
whole file again for one edit.
"""

# mypy: disable-error-code="import-not-found,untyped-decorator"
# The peer may not be installed, and what it decorates or gives to subclass has no types then.

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.corpus import read_texts
from benchmarks.systems import Stored, Synced, System, lance_rows, weights_folder

TABLE = "documents"


@dataclass
class Row:
    """A row of the table; how long the vectors are, the embedder says."""

    id: str
    text: str
    embedding: NDArray[np.float32]


class CocoIndex(System):
    title = "CocoIndex"
    requires = ("cocoindex", "sentence-transformers", "torch", "lancedb")
    warms = ("cocoindex.connectors.lancedb", "sentence_transformers", "lancedb")

    def sync(self, folder: Path) -> Synced:
        synced = Synced(0)
        _app(folder, synced).update_blocking()
        return synced

    def dump(self, folder: Path) -> Stored:
        return lance_rows(folder / "lance", TABLE, "id", "embedding")


def _app(folder: Path, synced: Synced) -> Any:
    import cocoindex as coco
    from cocoindex.connectors import lancedb
    from cocoindex.ops.sentence_transformers import SentenceTransformerEmbedder

    database: Any = coco.ContextKey("database")
    embedder = SentenceTransformerEmbedder(str(weights_folder()))
    _count_encoded(embedder, synced)

    @coco.lifespan
    async def lifespan(builder: Any) -> AsyncIterator[None]:
        builder.settings.db_path = folder / "cocoindex.db"
        builder.provide(database, await lancedb.connect_async(str(folder / "lance")))
        yield

    @coco.fn(memo=True)
    async def process(document: tuple[str, str], table: Any) -> None:
        name, text = document
        table.declare_row(row=Row(id=name, text=text, embedding=await embedder.embed(text)))

    @coco.fn
    async def main() -> None:
        schema = await lancedb.TableSchema.from_class(
            Row, primary_key=["id"], column_specs={"embedding": embedder}
        )
        table = await lancedb.mount_table_target(database, table_name=TABLE, table_schema=schema)
        documents = [(name, (name, text)) for name, text in read_texts(folder).items()]
        await coco.mount_each(process, documents, table)

    return coco.App(coco.AppConfig(name="Benchmark"), main)


def _count_encoded(embedder: Any, synced: Synced) -> None:
    """Counts what its model encodes once it is loaded: where nothing is to be embedded, it need not
    be imported."""
    load = embedder._get_model
    loaded: list[Any] = []

    def load_counted() -> Any:
        model = load()
        if not loaded:
            loaded.append(model)
            encode = model.encode

            def counting(texts: Any, *arguments: Any, **options: Any) -> Any:
                synced.embedded += 1 if isinstance(texts, str) else len(texts)
                return encode(texts, *arguments, **options)

            model.encode = counting
        return model

    embedder._get_model = load_counted
