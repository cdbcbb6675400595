"""Zero-shot labels: which of a user's names fit an image best, by the vectors of a sentence with each.

The images' vectors are there anyway, so labels cost the model their own texts, once.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa

from embedding_pipelines.embedding.embed import embed_all
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import TABLE_TYPES
from embedding_pipelines.vectors import Vectors

ROWS_AT_ONCE = 4_096  # whose cosines with all labels are in memory


@dataclass(frozen=True)
class Labeller:
    """Names, and the unit vectors float32[m, d] of their texts."""

    names: tuple[str, ...]
    vectors: Vectors
    top: int

    @classmethod
    def of(cls, run: Run) -> Self | None:
        """By the pipeline's labels; None if it has none. Raises as `embed_all`, and ConfigError for
        a text that the model rejects."""
        labels = getattr(run.spec.model, "labels", None)
        if labels is None:
            return None
        embeddings = embed_all(labels.texts, run.model, run.cache, "document")
        run.add_usage(embeddings.usage, run.spec.model.price)
        for row, reason in embeddings.rejected.items():
            raise ConfigError(f"model.labels: {labels.texts[row]!r} has no vector: {reason}")
        return cls(labels.names, embeddings.vectors, min(labels.top, len(labels.names)))

    def columns(self, vectors: Vectors, images: pa.Array) -> dict[str, pa.Array]:
        """`labels` and `label_scores`, best first, of unit vectors float32[n, d]; null for rows
        without an image."""
        names, scores = list[pa.Array](), list[Vectors]()
        for start in range(0, len(vectors), ROWS_AT_ONCE):
            cosines = vectors[start : start + ROWS_AT_ONCE] @ self.vectors.T
            best = np.argsort(-cosines, axis=1, kind="stable")[:, : self.top]
            names.append(pa.array(self.names).take(pa.array(best.ravel())))
            scores.append(np.take_along_axis(cosines, best, axis=1).ravel())
        flat = pa.concat_arrays(names) if names else pa.array([], pa.string())
        numbers = np.concatenate([np.empty(0, np.float32), *scores])
        has_image = images.is_valid().to_numpy(zero_copy_only=False)
        ends = np.cumsum(has_image * self.top, dtype=np.int32)
        offsets = pa.array(np.concatenate([[0], ends]).astype(np.int32))
        of_images = np.repeat(has_image, self.top)
        mask = images.is_null()
        return {
            name: pa.ListArray.from_arrays(
                offsets, values.filter(pa.array(of_images)), type=TABLE_TYPES[kind], mask=mask
            )
            for name, kind, values in (
                ("labels", "list[string]", flat),
                ("label_scores", "list[float]", pa.array(numbers, pa.float32())),
            )
        }
