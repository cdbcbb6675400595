"""All that the file requires under `evaluation.require`."""

from embedding_pipelines.metrics.registry import METRICS
from embedding_pipelines.quality.base import Candidate, Check, Outcome


class RequiredMetricsHold(Check):
    def evaluate(self, candidate: Candidate) -> Outcome:
        bounds, faults = candidate.run.spec.evaluation.require, list[str]()
        statistics = {name: candidate.metrics.get(name) for name in bounds}
        for name, bound in bounds.items():
            value, metric = statistics[name], METRICS[name]
            if value is None and name == "mean_shift":
                continue  # there is nothing that it could have moved from
            if value is None:
                faults.append(f"{name} was not measured")
            elif not metric.meets(value, bound):
                limit = "at least" if metric.direction == "higher" else "at most"
                faults.append(f"{name} is {value:.4g}, {limit} {bound:.4g} is required")
        sentence = f"All {len(bounds)} required metrics hold."
        if not bounds:
            sentence = "No thresholds set in evaluation.require."
        return self.outcome(not faults, "; ".join(faults) or sentence, statistics)
