"""The naive script: `SentenceTransformer.encode()` with its defaults, then `lancedb.create_table`;
no memory."""

from pathlib import Path

from benchmarks.corpus import read_texts
from benchmarks.systems import Stored, Synced, System, counted, lance_rows, weights_folder

TABLE = "documents"


class Naive(System):
    title = "naive script"
    requires = ("sentence-transformers", "torch", "lancedb")
    warms = ("sentence_transformers", "lancedb")
    remembers = False

    def sync(self, folder: Path) -> Synced:
        import lancedb
        from sentence_transformers import SentenceTransformer

        texts = read_texts(folder)
        model = SentenceTransformer(str(weights_folder()))
        with counted(SentenceTransformer, "encode") as synced:
            vectors = model.encode(list(texts.values()))
        rows = [
            {"id": name, "text": text, "vector": vector}
            for (name, text), vector in zip(texts.items(), vectors, strict=True)
        ]
        lancedb.connect(folder / "lance").create_table(TABLE, rows, mode="overwrite")
        return synced

    def dump(self, folder: Path) -> Stored:
        return lance_rows(folder / "lance", TABLE, "id", "vector")
