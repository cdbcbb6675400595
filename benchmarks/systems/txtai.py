"""txtai: an `Embeddings` index with upsert and delete. What changed, the caller has to find and
say.

The index is FAISS's exact one ("IDMap,Flat"), so that what is stored can be compared; from 5,000
rows on txtai's default is IVF.
"""

# mypy: disable-error-code="import-not-found"
# The peer may not be installed, and what it decorates or gives to subclass has no types then.

import hashlib
import json
from pathlib import Path

import numpy as np

from benchmarks.corpus import read_texts
from benchmarks.systems import MAX_TOKENS, Stored, Synced, System, counted, weights_folder


class Txtai(System):
    title = "txtai, the caller diffs"
    requires = ("txtai", "faiss-cpu", "torch")
    warms = ("txtai.embeddings",)

    def sync(self, folder: Path) -> Synced:
        hashes, index = folder / "hashes.json", folder / "index"
        texts = read_texts(folder)
        now = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
        was: dict[str, str] = json.loads(hashes.read_text()) if hashes.exists() else {}
        gone = [name for name in was if name not in now]
        fresh = [
            (name, texts[name], None) for name, digest in now.items() if was.get(name) != digest
        ]
        if not gone and not fresh:
            return Synced(
                0, ["the caller's hashes say that nothing changed; txtai itself is not even loaded"]
            )

        from txtai.embeddings import Embeddings
        from txtai.models import Pooling

        if was:
            embeddings = Embeddings()
            embeddings.load(str(index))
        else:
            embeddings = Embeddings(
                path=str(weights_folder()),
                content=True,
                maxlength=MAX_TOKENS,
                faiss={"components": "IDMap,Flat"},
            )
        with counted(Pooling, "encode") as synced:
            if gone:
                embeddings.delete(gone)
            if fresh:
                embeddings.upsert(fresh)
        embeddings.save(str(index))
        hashes.write_text(json.dumps(now))
        embeddings.close()
        return synced

    def dump(self, folder: Path) -> Stored:
        import faiss
        from txtai.embeddings import Embeddings

        embeddings = Embeddings()
        embeddings.load(str(folder / "index"))
        index = faiss.downcast_index(embeddings.ann.backend)
        vectors = faiss.downcast_index(index.index).reconstruct_n(0, index.ntotal)
        at = {
            row["indexid"]: row["id"]
            for row in embeddings.search("SELECT indexid, id FROM txtai", 10**9)
        }
        # A vector without a row in the database is shown under a name that no document has.
        ids = [
            str(at.pop(number, f"vector {number}"))
            for number in faiss.vector_to_array(index.id_map).tolist()
        ]
        ids += [str(name) for name in at.values()]  # rows without a vector
        return Stored(
            ids, np.concatenate([vectors, np.zeros((len(at), vectors.shape[1]), np.float32)])
        )
