"""No metric of queries has fallen by more than `evaluation.may_lose`, beyond chance; no table has
become empty."""

from typing import Any

from embedding_pipelines.metrics.confidence import paired_loss
from embedding_pipelines.quality.base import MIN_ROWS, Candidate, Check, Outcome
from embedding_pipelines.quality.evidence import query_figures


class NotWorseThanLive(Check):
    def collect(self, candidate: Candidate) -> None:
        if candidate.live is not None:
            candidate.collected[self.name] = query_figures(candidate.run, candidate.live)

    def evaluate(self, candidate: Candidate) -> Outcome:
        live: dict[str, dict[str, float]] = candidate.collected.get(self.name, {})
        if candidate.live is None or not live:
            return self.outcome(True, "Skipped: there is no live release with figures to compare.")
        release, spec = candidate.live, candidate.run.spec
        command = f"embedding-pipelines release {release.spec.name} --force --reason …"
        remedy = f"To release anyway: `{command}`."
        # As an export that failed leaves it.
        if not candidate.rows and release.rows >= MIN_ROWS:
            rows = f"release {release.number} has {release.rows} rows"
            return self.outcome(False, f"The table is empty; {rows}. {remedy}")
        may_lose, statistics = spec.evaluation.may_lose, dict[str, Any]()
        changes, worse = list[str](), list[str]()
        for name, values in candidate.query_metrics.items():
            loss = paired_loss(values, live.get(name, {}))
            if not loss.queries:
                continue
            figures = {"loss": loss.mean, "certain_loss": loss.certain, "queries": loss.queries}
            statistics[name] = figures
            changes.append(f"{name} {-loss.mean:+.4f} over {loss.queries} queries")
            if loss.mean > may_lose and loss.certain > 0 and not candidate.has_only_grown:
                worse.append(name)
        changed = ", ".join(changes) or "no query in common"
        sentence = f"Against release {release.number}: {changed}."
        if worse:
            sentence += f" {' and '.join(worse)} fell by more than evaluation.may_lose "
            sentence += f"({may_lose:g}). {remedy}"
        return self.outcome(not worse, sentence, statistics)
