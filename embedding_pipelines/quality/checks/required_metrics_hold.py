"""All that the file requires under `evaluation.require`."""

from embedding_pipelines.metrics.registry import METRICS
from embedding_pipelines.quality.base import Candidate, Check, Outcome

NOT_MEASURED = (
    "what it is measured with is missing (evaluation.queries and qrels, pairs, label, known_items, "
    "or a check that is off or could not run)"
)


class RequiredMetricsHold(Check):
    def evaluate(self, candidate: Candidate) -> Outcome:
        bounds, faults = candidate.run.spec.evaluation.require, list[str]()
        statistics = {name: candidate.metrics.get(name) for name in bounds}
        for name, bound in bounds.items():
            value, metric = statistics[name], METRICS[name]
            if value is None and name == "mean_shift":
                continue  # there is nothing that it could have moved from
            if value is None:
                faults.append(f"{name} was not measured: {NOT_MEASURED}")
            elif not metric.meets(value, bound):
                limit = "at least" if metric.direction == "higher" else "at most"
                faults.append(
                    f"{name} is {value:.4g}, {limit} {bound:.4g} is required by evaluation.require"
                )
        sentence = f"All {len(bounds)} required metrics hold."
        if not bounds:
            sentence = "No thresholds set in evaluation.require."
        if faults:
            sentence = f"{'; '.join(faults)}. Improve what is measured, or ask for less."
        return self.outcome(not faults, sentence, statistics)
