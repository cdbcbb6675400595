"""Duplicates, short texts, hubs and unused dimensions are within what is usual."""

from embedding_pipelines.quality.base import MIN_ROWS, Candidate, Check, Outcome

THRESHOLDS = {  # at most, measured on this project's test corpora; and what more of it means
    "anisotropy": (0.9, "all vectors point about the same way, so searches tell little apart"),
    "hubness": (15.0, "a few chunks are among the nearest of very many"),
    "duplicate_rate": (
        0.5,
        "chunks with the same vector: doubles in the source, or one text of many",
    ),
    "near_duplicate_rate": (
        0.7,
        "chunks that nearly say the same: doubles, or a text in all of them",
    ),
    "short_rate": (0.3, "chunks of four tokens or fewer by the model's tokenizer"),
}
LEAST_RANK = 0.02  # of the dimensions: fewer are in use than one in fifty


class SpaceIsHealthy(Check):
    effect = "warn"

    def evaluate(self, candidate: Candidate) -> Outcome:
        names, metrics = (*THRESHOLDS, "effective_rank", "mean_norm"), candidate.metrics
        statistics = {name: metrics[name] for name in names if name in metrics}
        if candidate.rows < MIN_ROWS:
            return self.too_few(candidate.rows, statistics)
        faults = [
            f"{name} is {statistics[name]:.3g} (usual: {most:g} or less): {meaning}"
            for name, (most, meaning) in THRESHOLDS.items()
            if statistics.get(name, 0) > most
        ]
        dimensions = candidate.run.model.space.dimensions
        rank = statistics.get("effective_rank", dimensions)
        if rank < LEAST_RANK * dimensions:
            faults.append(
                f"effective_rank is {rank:.1f} of {dimensions} dimensions: the texts vary in few ways"
            )
        if faults:
            sentence = f"{'; '.join(faults)}. See what source.text names, and whether rows repeat."
            return self.outcome(False, sentence, statistics)
        return self.outcome(True, "All within what is usual.", statistics)
