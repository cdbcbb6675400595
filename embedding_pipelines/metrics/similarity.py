"""How near vectors are to each other, and how well that orders pairs of texts as people do.

A zero vector has no direction: its cosine with any other is 0.0. Vectors are of any real type,
without NaN; other shapes than those named raise ValueError.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedding_pipelines.metrics.base import metric
from embedding_pipelines.metrics.evidence import Evidence
from embedding_pipelines.vectors import Vectors, cosine, unit

Numbers = NDArray[np.floating[Any] | np.integer[Any]]
Floats = NDArray[np.floating[Any]]

BLOCK_ROWS = 16_384  # computed in float64 at a time: 100 MB for 768 dimensions


def cosine_similarity(a: Numbers, b: Numbers) -> float:
    """Cosine of the angle between two vectors [d], in [-1, 1]."""
    a, b = _pair(a, b)
    return float(cosine(a[None], b[None])[0])


def euclidean_distance(a: Numbers, b: Numbers) -> float:
    """Length of the line between two vectors [d]."""
    return math.dist(*_pair(a, b))


def dot_product(a: Numbers, b: Numbers) -> float:
    """Sum of products of two vectors [d]; for unit vectors, their cosine."""
    a, b = _pair(a, b)
    return float(a @ b)


def find_most_similar(
    query_embedding: Numbers, document_embeddings: Numbers, top_k: int = 5
) -> list[tuple[int, float]]:
    """Row and cosine of the `top_k` rows of `document_embeddings` [n, d] that are nearest to
    `query_embedding` [d], the nearest first, of equals the earlier row; all if there are fewer.
    Raises ValueError for `top_k` below 1."""
    documents, query = np.asarray(document_embeddings), np.asarray(query_embedding)
    if documents.ndim != 2 or query.shape != documents.shape[1:]:
        raise ValueError(
            f"A query of shape {query.shape} cannot be compared with documents of shape "
            f"{documents.shape}: give [d] and [n, d]."
        )
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}: ask for one at least.")
    direction = unit(_finite(query)[None])[0]
    cosines = np.empty(len(documents))
    for start in range(0, len(documents), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        cosines[part] = (unit(_finite(documents[part])) @ direction).clip(-1, 1)
    return [(int(row), float(cosines[row])) for row in np.argsort(-cosines, kind="stable")[:top_k]]


def normalize_embedding(embedding: Numbers) -> Floats:
    """The vector [d] at unit length, as `normalize_batch`."""
    vector = np.asarray(embedding)
    if vector.ndim != 1:
        raise ValueError(
            f"An array of shape {vector.shape} is not one vector: give [d], or use normalize_batch."
        )
    direction: Floats = normalize_batch(vector[None])[0]
    return direction


def normalize_batch(embeddings: Numbers) -> Floats:
    """Each row of [n, d] at unit length, in its own precision (whole numbers: float64); zero rows
    as they are."""
    vectors = np.asarray(embeddings)
    if vectors.ndim != 2:
        raise ValueError(f"An array of shape {vectors.shape} is no batch of vectors: give [n, d].")
    precision = vectors.dtype if np.issubdtype(vectors.dtype, np.floating) else np.float64
    return unit(_finite(vectors)).astype(precision)


def cosine_spearman(left: Vectors, right: Vectors, scores: Sequence[float]) -> float:
    """Spearman's rank correlation of cosine(left[i], right[i]) with what people gave pair i; in
    [-1, 1]; NaN where all are equal. `left` and `right` are float32[n, d] in one space, n >= 2."""
    if not len(left) == len(right) == len(scores):
        raise ValueError(
            f"{len(left)} and {len(right)} vectors, but {len(scores)} scores: give one of each "
            "a pair."
        )
    with np.errstate(invalid="ignore"):
        ranks = _ranks(cosine(left, right)), _ranks(np.asarray(scores))
        return float(np.corrcoef(*ranks)[0, 1])


def _ranks(values: Numbers) -> NDArray[np.float64]:
    """The place of each of [n] in ascending order; equal ones share the mean of their places."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    places: NDArray[np.float64] = (counts.cumsum() - (counts - 1) / 2)[inverse]
    return places


def _pair(a: Numbers, b: Numbers) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = np.asarray(a), np.asarray(b)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(
            f"Arrays of shape {first.shape} and {second.shape} are not two vectors of one length."
        )
    return _finite(first), _finite(second)


def _finite(array: Numbers) -> NDArray[np.float64]:
    numbers = array.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError("A vector holds NaN or infinity, which is near to nothing.")
    return numbers


@metric("higher", "cosine")
def codec_cosine(evidence: Evidence) -> float | None:
    """Mean cosine between original and decoded vectors."""
    if evidence.sample is None or evidence.decoded is None:
        return None
    return float(cosine(evidence.sample, evidence.decoded, both_zero=1).mean())


@metric("higher", "cosine")
def canary_cosine(evidence: Evidence) -> float | None:
    """Least cosine between the canaries' vectors of today and those of the first run."""
    return _least(evidence.canary_cosines)


@metric("higher", "cosine")
def stored_cosine(evidence: Evidence) -> float | None:
    """Least cosine between some stored vectors and their texts embedded again."""
    return _least(evidence.stored_cosines)


@metric("higher", "correlation")
def pair_spearman(evidence: Evidence) -> float | None:
    """Rank correlation of cosines with the scores of sentence pairs."""
    if evidence.pairs is None or len(set(evidence.pairs[2])) < 2:  # there is no order to find again
        return None
    return cosine_spearman(*evidence.pairs)


def _least(cosines: Vectors | None) -> float | None:
    return None if cosines is None else float(np.min(cosines, initial=1))
