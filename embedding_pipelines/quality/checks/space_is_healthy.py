"""Duplicates, short texts, hubs and unused dimensions are within what is usual."""

from embedding_pipelines.quality.base import MIN_ROWS, Candidate, Check, Outcome

THRESHOLDS = {  # at most; measured on this project's test corpora
    "anisotropy": 0.9,
    "hubness": 15.0,
    "duplicate_rate": 0.5,
    "near_duplicate_rate": 0.7,
    "short_rate": 0.3,
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
            f"{name} is {statistics[name]:.3g} (usual: {most:g} or less)"
            for name, most in THRESHOLDS.items()
            if statistics[name] > most
        ]
        rank, dimensions = statistics["effective_rank"], candidate.run.model.space.dimensions
        if rank < LEAST_RANK * dimensions:
            faults.append(f"effective_rank is {rank:.1f} of {dimensions} dimensions")
        return self.outcome(
            not faults, "; ".join(faults) or "All within what is usual.", statistics
        )
