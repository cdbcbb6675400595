"""canaries: whether provider and stored vectors can still be believed. Both ask the model, past
the cache.

Frozen canaries notice a service that has silently changed its model: the same texts, other vectors.
Stored texts that are embedded again notice vectors that stand beside a text that is not theirs,
whatever put them there.
"""

import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.embedding.budget import BudgetTracker
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.files import replacing
from embedding_pipelines.providers.base import EmbeddingModel, InputType
from embedding_pipelines.quality.queries import answered, chunk_rows, embed_texts
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.stores.base import Table
from embedding_pipelines.vectors import Vectors, cosine, to_matrix

CANARIES = (
    "The harbour was full of fishing boats.",
    "Divide both sides of the equation by seven.",
    "How do I return a parcel that arrived damaged?",
    "def mean(values): return sum(values) / len(values)",
    "Die Sitzung wurde auf Donnerstag verschoben.",
    "Insulin lowers the concentration of glucose in the blood.",
    "42",
    "Once upon a time there was a king who had three daughters, and the youngest of them asked too many questions.",
)


def canary_cosine(run: Run, model: EmbeddingModel, budget: BudgetTracker) -> float:
    """The least cosine of the canaries' vectors with those of the first time, in either input type;
    1.0 the first time.

    What is frozen is kept per space in the warehouse, for all pipelines. Raises as `embed`.
    """
    path = run.warehouse.root / "canaries" / f"{model.space.id}.npz"
    fresh = {
        input_type: _asked_anew(model, CANARIES, input_type, budget)
        for input_type in get_args(InputType)
    }
    frozen = _load(path)
    if frozen is None:
        with replacing(path) as draft, draft.open("wb") as file:
            np.savez(file, **fresh)  # type: ignore[arg-type]
        return 1.0
    # A text that is refused has NaN, here zeros: 1 where it was refused then and now.
    pairs = ((np.nan_to_num(frozen[name]), np.nan_to_num(fresh[name])) for name in fresh)
    return float(min(cosine(then, now, both_zero=1).min(initial=1) for then, now in pairs))


def stored_cosine(
    run: Run,
    model: EmbeddingModel,
    codec: CodecChain,
    table: Table,
    wanted: int,
    seed: int,
    budget: BudgetTracker,
) -> tuple[float, list[str]]:
    """The least cosine of `wanted` stored vectors with their texts embedded again, and the worst
    chunks first.

    Both are compared as the codec leaves them. Raises as `embed`.
    """
    texts = _some_texts(run, wanted, seed)
    stored: dict[str, Vectors] = {}
    wanted_ids = pa.array(texts, pa.string())
    for batch in table.scan(["chunk_id", VECTOR]):
        found = batch.filter(pc.is_in(batch["chunk_id"], wanted_ids))
        if found.num_rows:
            codes = to_matrix(found[VECTOR])
            stored |= dict(
                zip(found["chunk_id"].to_pylist(), codec.decode(_codes(codec, codes)), strict=True)
            )
    names = sorted(stored)
    if not names:
        return 1.0, []
    fresh = _asked_anew(model, [texts[name] for name in names], "document", budget)
    sound = answered(fresh)  # what the provider refuses today tells nothing about what is stored
    right = codec.decode(codec.encode(np.where(sound[:, None], fresh, 0)))
    near = np.where(
        sound, cosine(np.stack([stored[name] for name in names]), right, both_zero=1), 1.0
    )
    return float(near.min()), [names[row] for row in np.argsort(near)]


def _asked_anew(
    model: EmbeddingModel, texts: Sequence[str], input_type: InputType, budget: BudgetTracker
) -> Vectors:
    """Vectors straight from the provider: the cache that they go through is empty and thrown
    away."""
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddingCache(Path(folder) / "cache.sqlite") as cache,
    ):
        return embed_texts(model, cache, texts, input_type, budget)


def _some_texts(run: Run, wanted: int, seed: int) -> dict[str, str]:
    """Some `wanted` chunks' texts by id, as many of each partition, others for another seed."""
    generator = np.random.default_rng(seed)
    found: dict[str, str] = {}
    made = {
        partition: run.folder.chunks.manifest(partition) for partition in run.spec.partition_names
    }
    filled = [(partition, entry.rows) for partition, entry in made.items() if entry and entry.rows]
    generator.shuffle(filled)
    for at, (partition, rows) in enumerate(filled):
        share = min(-(-(wanted - len(found)) // (len(filled) - at)), rows)
        if share:
            chosen = np.sort(generator.choice(rows, share, replace=False))
            picked = chunk_rows(run, partition, chosen, ["chunk_id", "text"])
            found |= dict(
                zip(picked["chunk_id"].to_pylist(), picked["text"].to_pylist(), strict=True)
            )
    return found


def _codes(codec: CodecChain, codes: Vectors) -> Vectors:
    """Codes as the codec made them: int8 may stand in a wider column."""
    return codes.astype(np.int8) if codec.dtype == "int8" else codes


def _load(path: Path) -> dict[str, Vectors] | None:
    """What was frozen, None if nothing is, or nothing that can be read: it is then frozen anew."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {input_type: archive[input_type] for input_type in get_args(InputType)}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
