"""No metric of queries has fallen by more than `evaluation.may_lose`, beyond chance; no table has
lost more of its documents than `evaluation.may_shrink`."""

from typing import Any

from embedding_pipelines.errors import counted
from embedding_pipelines.metrics.confidence import paired_loss
from embedding_pipelines.quality.base import Candidate, Check, Outcome
from embedding_pipelines.quality.evidence import query_figures
from embedding_pipelines.releases import Release
from embedding_pipelines.run import Run
from embedding_pipelines.storage.pushed import pushed_log

FEW_DOCUMENTS = 10  # fewer of them may shrink as they like, but not to none


class NotWorseThanLive(Check):
    def collect(self, candidate: Candidate) -> None:
        if candidate.live is not None:
            candidate.collected[self.name] = query_figures(candidate.run.folder, candidate.live)

    def evaluate(self, candidate: Candidate) -> Outcome:
        live: dict[str, dict[str, float]] = candidate.collected.get(self.name, {})
        if candidate.live is None:
            return self.outcome(True, "Skipped: no release was live before this one.")
        may_shrink = candidate.run.spec.evaluation.may_shrink
        too_small, statistics = shrunk(
            candidate.run, candidate.live, candidate.documents, candidate.rows, may_shrink
        )
        if too_small:
            source = (
                f"{counted(candidate.source_rows, 'record')} from "
                f"{counted(candidate.source_files, 'file')}. If it is "
                "not whole (an export that failed, a folder that is not there), mend it and run "
                "again."
            )
            return self.outcome(False, f"{too_small}: the source gave {source}", statistics)
        if not live:
            release = f"release {candidate.live.number}"
            return self.outcome(True, f"Skipped: {release} has no figures to compare.", statistics)
        may_lose = candidate.run.spec.evaluation.may_lose
        changes, worse = list[str](), list[str]()
        for name, values in candidate.query_metrics.items():
            loss = paired_loss(values, live.get(name, {}))
            if not loss.queries:
                continue
            figures = {"loss": loss.mean, "certain_loss": loss.certain, "queries": loss.queries}
            statistics[name] = figures
            changes.append(f"{name} {_signed(-loss.mean)} over {loss.queries} queries")
            if loss.mean > may_lose and loss.certain > 0 and not candidate.has_only_grown:
                worse.append(name)
        changed = ", ".join(changes) or "no query in common"
        sentence = f"Against release {candidate.live.number}: {changed}."
        if worse:
            sentence += f" {' and '.join(worse)} fell by more than evaluation.may_lose "
            sentence += f"({may_lose:g}). {_cause(candidate, candidate.live)}"
        return self.outcome(not worse, sentence, statistics)


def _cause(candidate: Candidate, live: Release) -> str:
    """What is not as it was when the live release was made, and what to do."""
    run, spec = candidate.run, candidate.run.spec
    names = [
        name
        for name in ("preprocessing", "compression", "store", "search")
        if getattr(spec, name) != getattr(live.spec, name)
    ]
    if live.space.with_codec(None) != run.model.space:
        names.insert(0, "model")
    if names:
        return (
            f"Not as in release {live.number}: {', '.join(names)}. Go back on that, or release it."
        )
    figures = []
    for name, words in (("documents", "documents"), ("near_duplicate_rate", "near-duplicates")):
        before, now = live.metrics.get(name), candidate.metrics.get(name)
        if before is not None and now is not None and before != now:
            style = ",.0f" if name == "documents" else ".0%"
            figures.append(f"{words} {before:{style}} -> {now:{style}}")
    evidence = f" ({', '.join(figures)})" if figures else ""
    return (
        f"Model and options are those of release {live.number}, so it is the texts{evidence}: others "
        "stand before those that queries are of. See what has come into the source."
    )


def shrunk(
    run: Run, live: Release, documents: int, rows: int, may_shrink: float
) -> tuple[str, dict[str, Any]]:
    """Why a table of so many documents and rows is too small, empty if it is not; and the figures.
    A release of before this was measured has no documents on record: its rows stand for them. What
    programs have deleted by name since is not lost."""
    before, now, what = live.metrics.get("documents"), documents, "documents"
    if before is None:
        before, now, what = live.rows, rows, "rows"
    statistics = {f"{what}_before": int(before), f"{what}_now": now}
    gone = 1 - now / before if before else 0.0
    if gone > may_shrink and (deleted := _deleted_by_name(run, live)):
        statistics["deleted_by_name"] = deleted
        gone = max(0.0, gone - deleted / before)
    if gone <= may_shrink or (now and before < FEW_DOCUMENTS):
        return "", statistics
    size = f"has only {now:,} {what}" if now else "is empty"
    sentence = (
        f"The table {size}; release {live.number} has {before:,.0f}. {_percent(gone)} are gone, "
        f"and evaluation.may_shrink allows {may_shrink:.0%}"
    )
    return sentence, statistics


def _deleted_by_name(run: Run, live: Release) -> int:
    """How many of the release's documents were deleted by programs since it was made."""
    words = pushed_log(run.warehouse, run.spec.name).words().items()
    gone = {name for name, word in words if word.kind == "delete" and word.number > live.pushed}
    if not gone:
        return 0
    table = live.spec.store.table(run.warehouse.tables, live.table)
    batches = table.scan(["document_id"], version=live.version)
    return len({name for batch in batches for name in batch["document_id"].to_pylist()} & gone)


def _percent(share: float) -> str:
    """A share of what is gone; 100% only if all of it is."""
    return "100%" if share == 1 else f"{min(share, 0.999):.1%}"


def _signed(change: float) -> str:
    return f"{change:+.4f}" if abs(change) >= 0.00005 else "unchanged"
