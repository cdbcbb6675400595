"""Stored vectors are those that their texts, or images, get when embedded again."""

import numpy as np

from embedding_pipelines.quality.base import Candidate, Check, Outcome
from embedding_pipelines.quality.queries import has_vector
from embedding_pipelines.run import Run
from embedding_pipelines.vectors import Vectors, cosine

LEAST_COSINE = 0.99  # of vectors after the codec; int8 and pca leave 0.9999 of equal ones
LEAST_COSINE_OF_BITS = 0.95  # one bit in forty may lie so near to zero that it turns

SAME_MODEL = 0.995  # cosine of canaries, as `provider_is_unchanged` asks for


class VectorsBelongToTheirTexts(Check):
    needs_stored_codes = True

    def cost(self, run: Run) -> int:
        manifests = map(run.folder.chunks.manifest, run.spec.partition_names)
        means = [
            entry.statistics["tokens"] / entry.rows for entry in manifests if entry and entry.rows
        ]
        return round(run.spec.evaluation.embedded_again * max(means, default=0))

    def collect(self, candidate: Candidate) -> None:
        """Past the cache; both sides are compared as the codec leaves them, worst chunks first."""
        names, codec = sorted(candidate.codes), candidate.codec
        cosines: Vectors = np.empty(0, np.float32)
        if names:
            fresh = candidate.embed_chunks(names)
            sound = has_vector(fresh)  # what the provider rejects today proves nothing
            today = codec.decode(codec.encode(np.where(sound[:, None], fresh, 0)))
            stored = codec.decode(np.stack([candidate.codes[name] for name in names]))
            cosines = np.where(sound, cosine(stored, today, both_zero=1), np.float32(1))
        candidate.stored_cosines = cosines
        candidate.collected[self.name] = [names[row] for row in np.argsort(cosines)]

    def evaluate(self, candidate: Candidate) -> Outcome:
        least, worst = candidate.metrics["stored_cosine"], candidate.collected[self.name]
        is_binary = candidate.codec.dtype == "binary"
        passed = least >= (LEAST_COSINE_OF_BITS if is_binary else LEAST_COSINE)
        sentence = (
            f"{len(worst)} stored vectors are those of their texts (cosine {least:.4f} or more)."
        )
        if not passed:
            canaries = candidate.metrics.get("canary_cosine")
            cause = "rows are mixed up, or the model has changed under its name"
            if canaries is not None and canaries >= SAME_MODEL:
                cause = (
                    "the model answers as ever (canaries at a cosine of "
                    f"{canaries:.4f}), so rows are mixed up, or wrong vectors were stored"
                )
            elif canaries is not None:
                cause = f"the model has changed under its name (canaries at {canaries:.4f})"
            remedy = (
                f"Embed all again: `embedding-pipelines run {candidate.run.spec.name} --re-embed`."
            )
            if canaries is not None and canaries < SAME_MODEL:  # other pipelines share its space
                remedy = "Set the model's `revision`, or another name: all is embedded again."
            sentence = (
                f"The stored vector of chunk {worst[0]!r} is not the one that its text has today "
                f"(cosine {least:.4f}, the worst of {len(worst)} chunks): {cause}. {remedy}"
            )
        statistics = {"cosine": least, "looked_at": len(worst), "worst": worst[:5]}
        return self.outcome(passed, sentence, statistics)
