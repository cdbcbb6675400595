"""Whether the vectors of a table are of one model.

Two models of equal dimensions share no directions: what one of them uses is chance to the other.
So a sample is parted into the two groups that lie best in subspaces of their own (k-subspaces:
Bradley and Mangasarian, "k-plane clustering", 2000), and the groups are compared: how much of the
one lies in the main directions of the other, beyond chance. Groups of one model differ by their
subjects, and share directions all the same.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]

AXES = 96  # of the whole sample, in which it is parted
MAIN = 16  # directions of a group
ROUNDS = 12
STARTS = 4
LEAST = 40  # rows of a group: fewer have no directions of their own
WORDS = 4_096  # into which words are hashed
MOST_PAIRED = 700  # rows of a group whose pairs are looked at
EXCHANGES = 200
FOLLOWS = 4.0  # standard deviations that are no chance


@dataclass(frozen=True)
class Mixture:
    """Two groups of a sample, and what they share."""

    in_second: NDArray[np.bool_]  # bool[n]: the smaller group
    shared: (
        float  # energy in the other group's directions, of that in its own; 0: chance, 1: one group
    )
    # Standard deviations by which cosines across the groups follow the words that texts share.
    follow_words: float | None


def find_mixture(vectors: Matrix, texts: Sequence[str], seed: int = 0) -> Mixture | None:
    """The two groups of float32[n, d] at unit length that share least; None where no two groups are
    to be told apart."""
    count, size = vectors.shape
    if count < 4 * LEAST or size < 8:
        return None
    main, random = max(1, min(MAIN, size // 8)), np.random.default_rng(seed)
    axes = vectors @ _directions(vectors, min(AXES, size))
    best: NDArray[np.bool_] | None = None
    least = np.inf
    for groups in _partings(axes, max(1, min(main, axes.shape[1] // 4)), random):
        one, other = vectors[~groups], vectors[groups]
        shared = max(_shared(one, other, main), _shared(other, one, main))
        if shared < least:
            best, least = groups, shared
    if best is None:
        return None
    second = ~best if best.sum() * 2 > count else best
    return Mixture(second, float(least), _follow_words(vectors, second, texts, random))


def _partings(rows: Matrix, main: int, random: np.random.Generator) -> Iterator[NDArray[np.bool_]]:
    """Which rows lie better in the second of two subspaces of `main` directions, from several
    starts: what lies least in the directions of all, and what is near and far from a row."""
    most = max(LEAST, len(rows) // 10)
    for start in range(STARTS):
        if start:
            near = np.abs(rows @ rows[random.integers(len(rows))])
            first = _directions(rows[np.argsort(-near)[:most]], main)
        else:
            first = _directions(rows, 2 * main)
        far = _energy(rows, first)
        second = _directions(rows[np.argsort(far)[: most if start else LEAST]], main)
        groups: NDArray[np.bool_] | None = None
        for _ in range(ROUNDS):
            before, groups = groups, _energy(rows, second) > _energy(rows, first)
            if min(groups.sum(), (~groups).sum()) < LEAST:
                break
            if before is not None and (before == groups).all():
                break
            first, second = _directions(rows[~groups], main), _directions(rows[groups], main)
        if groups is not None and min(groups.sum(), (~groups).sum()) >= LEAST:
            yield groups


def _directions(rows: Matrix, count: int) -> Matrix:
    """The main directions [d, count], orthonormal, not centred."""
    if len(rows) < rows.shape[1]:
        _, _, axes = np.linalg.svd(rows, full_matrices=False)
        return np.ascontiguousarray(axes[:count].T)
    _, axes = np.linalg.eigh(rows.T @ rows)
    return np.ascontiguousarray(axes[:, -count:])


def _energy(rows: Matrix, directions: Matrix) -> Matrix:
    """Of each row the share of its energy [n] in some directions, if it is at unit length."""
    energy: Matrix = ((rows @ directions) ** 2).sum(axis=1)
    return energy


def _shared(one: Matrix, other: Matrix, main: int) -> float:
    """How much of the other group lies in the directions of one, of how much of the one itself
    does: both beyond what random vectors have there. Directions are of one half, measured on the
    other."""
    directions = _directions(one[::2], main)
    chance = directions.shape[1] / one.shape[1]
    own = float(_energy(one[1::2], directions).mean()) - chance
    others = float(_energy(other, directions).mean()) - chance
    return float(max(0.0, others) / max(own, 1e-6))


def _follow_words(
    vectors: Matrix,
    second: NDArray[np.bool_],
    texts: Sequence[str],
    random: np.random.Generator,
) -> float | None:
    """By how many standard deviations texts of one group are nearer to those of the other whose
    words they share than to others of it, beyond what they would be if one group was of a model
    whose directions are unlike by chance. None without texts, or where cosines follow no words
    within the groups either."""
    words = _hashed_words(texts)
    has_words = words.any(axis=1)
    groups = [np.flatnonzero(has_words & group)[:MOST_PAIRED] for group in (~second, second)]
    if min(map(len, groups)) < LEAST:
        return None
    for group in groups:
        if _deviations(vectors, words, group[::2], group[1::2], random) < 2 * FOLLOWS:
            return None
    return _deviations(vectors, words, groups[0], groups[1], random)


def _deviations(
    vectors: Matrix,
    words: Matrix,
    left: NDArray[np.intp],
    right: NDArray[np.intp],
    random: np.random.Generator,
) -> float:
    by_words, size = words[left] @ words[right].T, vectors.shape[1]
    # How near a text is to all others says nothing of single pairs.
    by_words -= by_words.mean(axis=1, keepdims=True)
    by_words -= by_words.mean(axis=0, keepdims=True)
    # The sum over pairs of words shared times cosine; then with numbers exchanged and signs turned.
    product = vectors[left].T @ by_words @ vectors[right]
    numbers = np.arange(size)
    by_chance = [
        float((product[numbers, random.permutation(size)] * random.choice([-1, 1], size)).sum())
        for _ in range(EXCHANGES)
    ]
    spread = max(float(np.std(by_chance)), 1e-9)
    return float(np.trace(product)) / spread


def _hashed_words(texts: Sequence[str]) -> Matrix:
    """Words float32[n, WORDS], rare ones count more; rows at unit length, or zero."""
    counts = np.zeros((len(texts), WORDS), np.float32)
    for row, text in enumerate(texts):
        for word in set(text[:2_000].lower().split()):
            counts[row, zlib.crc32(word.encode("utf-8", "replace")) % WORDS] = 1
    counts *= np.log((len(texts) + 1) / (counts.sum(axis=0) + 1))
    lengths = np.linalg.norm(counts, axis=1, keepdims=True)
    counts /= np.where(lengths == 0, 1, lengths)
    return counts
