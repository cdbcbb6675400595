"""codec: the compression is fitted once on a sample of the embeddings, and kept.

It is found again by what it was fitted for (compression, seed, space), so new data does not move
the space under the vectors that are already stored.
"""

from pathlib import Path
from typing import Any

import numpy as np

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.errors import CompressionError
from embedding_pipelines.pipeline import fingerprint
from embedding_pipelines.progress import StepReport
from embedding_pipelines.providers.base import Vectors
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.space import Space
from embedding_pipelines.steps.context import StepContext

# PCA-128 of 384 dimensions: the principal directions of 20,000 vectors and of all of a larger corpus
# give the same recall to the third digit; 20,000 x 1,024 float32 are 80 MB.
SAMPLE_VECTORS = 20_000


def fit_codec(context: StepContext, space: Space) -> StepReport:
    """Fit and keep the pipeline's codec for vectors of `space`, if that was not done before.

    Raises CompressionError if there are too few vectors to fit it on.
    """
    current = current_codec(context, space)
    if current is not None:
        return current
    sample = _sample(context, space.dimensions)
    if context.spec.compression and not len(sample):
        raise CompressionError(
            f"Pipeline {context.spec.name!r}: there is no text to fit the compression on, since no document was "
            "read or all of them are empty. Add documents, or leave out compression until there are some."
        )
    fitted = CodecChain.fit(context.spec.compression, sample, context.spec.seed)
    # Its own id is in the name: one that is fitted anew never takes the place of one that a release names.
    path = context.folder.codecs / f"{fitted_for(context, space)}-{fitted.id[:16]}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    fitted.save(draft)
    draft.replace(path)
    return StepReport("codec", True, _facts(path, space))


def current_codec(context: StepContext, space: Space) -> StepReport | None:
    """The report of a codec that was fitted before, None if there is none."""
    path = codec_path(context, space)
    return StepReport("codec", False, _facts(path, space)) if path else None


def load_codec(context: StepContext, space: Space) -> CodecChain:
    """The codec that `fit_codec` kept. Raises CompressionError if there is none."""
    path = codec_path(context, space)
    if path is None:
        raise CompressionError(
            f"Pipeline {context.spec.name!r}: its codec is not fitted yet. Materialize 'codec' first, or run "
            f"`embedding-pipelines run {context.spec.name}`."
        )
    return CodecChain.load(path)


def codec_path(context: StepContext, space: Space) -> Path | None:
    """Where the codec for vectors of `space` is kept, None if none was fitted yet."""
    found = sorted(context.folder.codecs.glob(f"{fitted_for(context, space)}-*.npz"))
    return found[0] if found else None


def fitted_for(context: StepContext, space: Space) -> str:
    """What a codec is found again by: the compression, its seed and the space."""
    return fingerprint(*context.spec.compression, str(context.spec.seed), space.id)[:16]


def _sample(context: StepContext, dimensions: int) -> Vectors:
    """Up to SAMPLE_VECTORS embeddings, each equally likely, the same for the same seed and data."""
    shards = context.folder.embeddings
    made = {name: shards.manifest(name) for name in context.spec.bucket_names}
    sizes = {name: entry.rows - entry.facts.get("rejected", 0) for name, entry in made.items() if entry}
    total = sum(sizes.values())
    generator = np.random.default_rng(context.spec.seed)
    chosen = np.sort(generator.choice(total, min(total, SAMPLE_VECTORS), replace=False))
    parts, first = [np.empty((0, dimensions), np.float32)], 0
    for bucket in sizes:
        for batch in shards.read(bucket, [VECTOR]):
            vectors = batch[VECTOR].drop_null().flatten().to_numpy().reshape(-1, dimensions)
            rows = chosen[(chosen >= first) & (chosen < first + len(vectors))] - first
            parts.append(vectors[rows])
            first += len(vectors)
    return np.concatenate(parts)


def _facts(path: Path, space: Space) -> dict[str, Any]:
    codec = CodecChain.load(path)
    return {
        "codec": codec.id,
        "dimensions": codec.dimensions,
        "dtype": codec.dtype,
        "metric": codec.metric,
        "bytes_per_vector": codec.encode(np.zeros((1, space.dimensions), np.float32)).nbytes,
        "size_bytes": path.stat().st_size,
    }
