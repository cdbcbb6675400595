"""A fine-tuned model answers queries of documents that it was not trained on no worse than its base
does, but for `evaluation.may_lose`."""

import numpy as np

from embedding_pipelines.files import read_json
from embedding_pipelines.metrics.confidence import paired_loss
from embedding_pipelines.quality.base import Candidate, Check, Outcome

GROUPS = {
    "judged": "judged queries",
    "pairs": "held-out pairs",
    "known_items": "known items",
}
Figures = dict[str, dict[str, float]]  # nDCG@10 by query, by group


class NotWorseThanBase(Check):
    def collect(self, candidate: Candidate) -> None:
        if candidate.run.spec.model.trains:
            record = read_json(candidate.run.folder.model) or {}
            candidate.collected[self.name] = record.get("figures")

    def evaluate(self, candidate: Candidate) -> Outcome:
        figures: dict[str, Figures] | None = candidate.collected.get(self.name)
        if figures is None:
            return self.outcome(True, "Skipped: the model is not fine-tuned.")
        may_lose = candidate.run.spec.evaluation.may_lose
        statistics, parts, worse = dict[str, dict[str, float]](), list[str](), list[str]()
        for group, base in figures["base"].items():
            trained = figures["trained"].get(group, {})
            loss, gain = paired_loss(trained, base), paired_loss(base, trained)
            before, after = (float(np.mean(list(each.values()))) for each in (base, trained))
            is_certain = max(loss.certain, gain.certain) > 0
            parts.append(
                f"{before:.4f} -> {after:.4f} over {loss.queries:,} {GROUPS[group]}"
                f"{'' if is_certain else ', which may be chance'}"
            )
            statistics[group] = {
                "base": before,
                "trained": after,
                "loss": loss.mean,
                "certain_loss": loss.certain,
                "certain_gain": gain.certain,
                "queries": loss.queries,
            }
            if loss.mean > may_lose:  # by chance or not: its base is there, and proven
                worse.append(GROUPS[group])
        sentence = f"nDCG@10 with its base -> fine-tuned: {'; '.join(parts)}."
        if not worse:
            return self.outcome(True, sentence, statistics)
        return self.outcome(
            False,
            f"{sentence} Over {' and '.join(worse)} it fell by more than evaluation.may_lose "
            f"({may_lose:g}). See whether the pairs are right, or train less (finetune.epochs, "
            "finetune.learning_rate); without `finetune` the base is the model.",
            statistics,
        )
