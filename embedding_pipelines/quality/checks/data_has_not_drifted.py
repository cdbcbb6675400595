"""Vectors are distributed as those of the live release."""

from embedding_pipelines.errors import counted
from embedding_pipelines.metrics.drift import drift
from embedding_pipelines.quality.base import Candidate, Check, Outcome
from embedding_pipelines.quality.evidence import sketch_of

LEAST_P = 0.001


class DataHasNotDrifted(Check):
    effect = "warn"

    def collect(self, candidate: Candidate) -> None:
        live, space = candidate.live, candidate.run.model.space
        if live is not None and live.space.with_codec(None) == space:
            candidate.live_sketch = sketch_of(candidate.run, live)

    def evaluate(self, candidate: Candidate) -> Outcome:
        live, now, before = candidate.live, candidate.sketch, candidate.live_sketch
        if live is None:
            return self.outcome(True, "Skipped: no release was live before this one.")
        if now is None:
            sentence = f"The table is empty; release {live.number} has {counted(live.rows, 'row')}."
            return self.outcome(live.rows == 0, sentence)
        if live.space.with_codec(None) != candidate.run.model.space:
            sentence = f"Skipped: release {live.number} is of another space."
            return self.outcome(True, sentence)
        if before is None:
            return self.outcome(True, f"Skipped: release {live.number} has no sketch.")
        result = drift(now, before)
        passed = result.p_value > LEAST_P and result.worst_partition_p > LEAST_P
        figures = (
            f"the mean vector has moved by {result.mean_shift:.4f} since release {live.number} "
            f"(p {result.p_value:.3g})"
        )
        if result.worst_partition:
            figures += (
                f", most in partition {result.worst_partition!r}, by "
                f"{result.worst_partition_shift:.4f} (p {result.worst_partition_p:.3g})"
            )
        if passed:
            return self.outcome(True, f"No change beyond chance: {figures}.", vars(result))
        sentence = (
            f"The texts are of another kind than before, beyond chance: {figures}. If that is not "
            f"as it should be, `embedding-pipelines diff {candidate.run.spec.name}` names documents "
            "that are new, gone or changed."
        )
        return self.outcome(False, sentence, vars(result))
