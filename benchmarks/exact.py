"""Whether a store holds exactly what it should: the right ids, each with the vector of its present
text.

The vectors that should be there are `SentenceTransformer.encode()`'s own, made once per text and
kept in the user's cache folder. A system that stores a document's beginning, cut at a word, is held
to the vector of that beginning.
"""

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.errors import BenchmarkError

Vectors = NDArray[np.float32]

SAME = 0.999  # cosine from which on two vectors are one text's; bfloat16 stays above 0.9999
LEAST_READ = 0.75  # of the model's limit that a text cut by its system must still have; a long word may cost the rest
EXAMPLES = 3  # ids that a verdict names


@dataclass(frozen=True)
class Verdict:
    """How a store differs from what it should hold; all empty: not at all."""

    missing: list[str]  # should be there and are not
    extra: list[str]  # are there and should not
    twice: list[str]  # more than one row for one document
    stale: list[str]  # still the vector of the text before the change
    wrong: list[str]  # another vector than any this document ever had
    lowest_cosine: float | None = None  # of any stored vector to the one that should be there

    @property
    def exact(self) -> bool:
        return not (self.missing or self.extra or self.twice or self.stale or self.wrong)

    def __str__(self) -> str:
        if self.exact:
            return "exact"
        faults = {
            name: getattr(self, name) for name in ("missing", "extra", "twice", "stale", "wrong")
        }
        return "; ".join(
            f"{len(ids)} {name} ({', '.join(ids[:EXAMPLES])}{', …' if len(ids) > EXAMPLES else ''})"
            for name, ids in faults.items()
            if ids
        )


def verdict(
    ids: Sequence[str],
    vectors: Vectors,
    texts: Mapping[str, str],
    before: Mapping[str, str],
    right: Mapping[str, Vectors],
) -> Verdict:
    """Judge rows `ids[i]`, `vectors[i]` (float[n, d]) against `texts`, the text of each document by
    its id.

    `before` are the texts of the phase before, `right` the vector of each text, of unit length.
    """
    counts = Counter(ids)
    stale: set[str] = set()
    wrong: set[str] = set()
    lowest = 1.0
    norms = np.linalg.norm(vectors, axis=1) if len(ids) else np.zeros(0)
    for name, vector, norm in zip(ids, vectors, norms, strict=True):
        if name not in texts:
            continue
        cosine = float(vector @ right[texts[name]] / norm) if norm else 0.0
        lowest = min(lowest, cosine)
        if cosine < SAME:
            old = before.get(name)
            was = float(vector @ right[old] / norm) if norm and old is not None else 0.0
            (stale if was >= SAME else wrong).add(name)
    return Verdict(
        missing=sorted(texts.keys() - counts.keys()),
        extra=sorted(counts.keys() - texts.keys()),
        twice=sorted(name for name, count in counts.items() if count > 1),
        stale=sorted(stale),
        wrong=sorted(wrong),
        lowest_cosine=round(lowest, 6),
    )


def refuse_invisible(
    edited: Collection[str],
    texts: Mapping[str, str],
    before: Mapping[str, str],
    right: Mapping[str, Vectors],
) -> None:
    """BenchmarkError if an edit changes a vector so little that a stale one would pass for the new
    one."""
    for name in edited:
        if float(right[texts[name]] @ right[before[name]]) >= SAME:
            raise BenchmarkError(
                f"The edit of document {name!r} does not show in its vector. Change corpus._edit."
            )


class RightVectors:
    """The vector of any text by `encode()` with its defaults, float32, of unit length; a file keeps
    them."""

    def __init__(self, model: Path, cache: Path) -> None:
        self._model = model
        weights = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()[:16]
        self._path = cache / f"encode-{weights}.npz"
        self._known: dict[str, Vectors] = {}
        if self._path.exists():
            with np.load(self._path) as stored:
                self._known = dict(zip(stored["keys"].tolist(), stored["vectors"], strict=True))

    def of(self, texts: Collection[str]) -> dict[str, Vectors]:
        """float32[d] for each text."""
        keys = {text: hashlib.sha256(text.encode()).hexdigest() for text in texts}
        missing = sorted(text for text, key in keys.items() if key not in self._known)
        if missing:
            computed = np.asarray(
                self._encoder.encode(missing, normalize_embeddings=True, show_progress_bar=False)
            )
            self._known.update(
                zip((keys[text] for text in missing), computed.astype(np.float32), strict=True)
            )
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft = self._path.with_suffix(f".{os.getpid()}.npz")
            np.savez(
                draft,
                keys=np.array(list(self._known)),
                vectors=np.stack(list(self._known.values())),
            )
            draft.replace(self._path)
        return {text: self._known[key] for text, key in keys.items()}

    def cut(self, whole: str, stored: str) -> str:
        """`stored` where it is the beginning of `whole` and about all that the model reads of it;
        else `whole`.

        A system that stores what it embedded may cut at a whole word, some tokens before the
        model's limit.
        """
        if stored == whole or not whole.startswith(stored):
            return whole
        ids = self._encoder.tokenizer(stored, truncation=False, verbose=False)["input_ids"]
        return stored if len(ids) >= LEAST_READ * self._encoder.max_seq_length else whole

    @functools.cached_property
    def _encoder(self) -> Any:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        quiet: Any = logging
        quiet.disable_progress_bar()
        return SentenceTransformer(str(self._model), device="cpu", local_files_only=True)
