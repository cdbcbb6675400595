"""The floor: this project's engine, a hash per row in a JSON file and plain lancedb calls, and
nothing else.

What a script can leave out and be right on a good day: it knows no crash, no bad record, no second
model, no release.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.corpus import read_texts
from benchmarks.exact import Vectors
from benchmarks.systems import MODEL, Stored, Synced, System, lance_rows

TABLE = "documents"
WINDOW_TEXTS = 1_024  # of one call to the engine; as many calls at once as the model says


class Floor(System):
    title = "floor: engine, hashes, lancedb"
    requires = ("openvino", "lancedb")
    warms = ("lancedb", "pyarrow")

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        self._embed(["one text, so that the model is converted"])

    def sync(self, folder: Path) -> Synced:
        state = folder / "hashes.json"
        texts = read_texts(folder)
        now = {
            name: hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
            for name, text in texts.items()
        }
        was: dict[str, str] = json.loads(state.read_text()) if state.exists() else {}
        if now == was:
            return Synced(0)

        import lancedb
        import pyarrow as pa

        connection = lancedb.connect(folder / "lance")
        stale = [name for name, digest in was.items() if now.get(name) != digest]
        fresh = [name for name, digest in now.items() if was.get(name) != digest]
        holder = {digest: name for name, digest in was.items()}
        vectors: dict[str, Vectors] = {}
        if was and (holders := {holder[now[name]] for name in fresh if now[name] in holder}):
            stored = (
                connection.open_table(TABLE)
                .search()
                .where(_among(holders))
                .select(["id", "vector"])
                .to_arrow()
            )
            vectors = {
                was[row["id"]]: np.array(row["vector"], np.float32) for row in stored.to_pylist()
            }
        missing = {now[name]: texts[name] for name in fresh if now[name] not in vectors}
        vectors.update(zip(missing, self._embed(list(missing.values())), strict=True))

        if fresh:
            matrix = np.stack([vectors[now[name]] for name in fresh])
            rows = pa.table(
                {
                    "id": fresh,
                    "text": [texts[name] for name in fresh],
                    "vector": pa.FixedSizeListArray.from_arrays(matrix.ravel(), matrix.shape[1]),
                }
            )
        if not was:
            connection.create_table(TABLE, rows)
        else:
            table = connection.open_table(TABLE)
            if stale:
                table.delete(_among(set(stale)))
            if fresh:
                table.add(rows)
        state.write_text(json.dumps(now))
        return Synced(len(missing))

    def dump(self, folder: Path) -> Stored:
        return lance_rows(folder / "lance", TABLE, "id", "vector")

    @staticmethod
    def _embed(texts: list[str]) -> list[Vectors]:
        from embedding_pipelines.providers.hf import Hf

        model = Hf(model=MODEL).open(Path())
        order = sorted(
            range(len(texts)), key=lambda i: -len(texts[i])
        )  # texts of like length together
        windows = [
            order[start : start + WINDOW_TEXTS] for start in range(0, len(order), WINDOW_TEXTS)
        ]
        vectors: dict[int, Vectors] = {}
        with ThreadPoolExecutor(model.limits.concurrent_requests if texts else 1) as pool:
            responses = pool.map(
                lambda window: model.embed([texts[i] for i in window], "document"), windows
            )
            for window, response in zip(windows, responses, strict=True):
                vectors.update(zip(window, response.vectors, strict=True))
        return [vectors[i] for i in range(len(texts))]


def _among(names: set[str]) -> str:
    return "id IN ({})".format(
        ", ".join("'" + name.replace("'", "''") + "'" for name in sorted(names))
    )
