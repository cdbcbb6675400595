"""What stands on top of the report: whether the newest data is live, and what that has changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from embedding_pipelines.activity import last_activity
from embedding_pipelines.diff.diff import MetricChange, metric_changes
from embedding_pipelines.errors import counted
from embedding_pipelines.quality.evidence import query_figures
from embedding_pipelines.releases import Release, Releases
from embedding_pipelines.run import Run
from embedding_pipelines.steps.checks import read_checks
from embedding_pipelines.steps.vector_store import table_state

State = Literal[
    "released", "released by force", "rolled back", "held back", "failed", "stopped", "not released"
]


@dataclass(frozen=True)
class Verdict:
    """How a pipeline stands, in a word and in sentences."""

    state: State
    sentences: list[str] = field(default_factory=list)
    # Name and sentence of each check that holds back what the last run wrote.
    problems: list[tuple[str, str]] = field(default_factory=list)

    @property
    def tone(self) -> str:
        """good, fair or bad."""
        return {"released": "good", "held back": "bad", "failed": "bad"}.get(self.state, "fair")


def verdict_of(run: Run, releases: Releases, live: Release | None) -> Verdict:
    """From what is on record; without a live release of the newest table. Raises StoreError if that
    is damaged."""
    state, record, newest = table_state(run), read_checks(run), releases.newest
    if live is not None:  # the other line's, while it migrates, waits for the cutover
        newest = releases.of_line(live.line)[-1]
    if live is None:
        stays = "There is no release yet, so searches have nothing to open"
    else:
        stays = f"Release {live.number} of {live.released_at:%Y-%m-%d %H:%M} UTC is live"
    tables = [(entry.table, entry.version) for entry in releases.releases]
    if state and record and record.is_of(state) and (state.table, state.version) not in tables:
        problems = [(check.name, check.sentence) for check in record.checks if check.blocks]
        if problems:
            rows = f"What the last run wrote, {counted(state.rows, 'row')}, is held back. {stays}."
            return Verdict("held back", [rows], problems)
    activity = last_activity(run)
    if activity and activity.state in ("failed", "stopped"):
        words = f"The last run has released nothing: {activity}."
        return Verdict("failed" if activity.state == "failed" else "stopped", [words, f"{stays}."])
    if live is None:
        return Verdict("not released", [f"{stays}. Run `embedding-pipelines run {run.spec.name}`."])
    sentences = [f"{stays}."]
    if activity and activity.state == "running":
        sentences.append("A run is at work.")
    if newest and newest.number != live.number:
        sentences.append(
            f"Release {newest.number} of {newest.released_at:%Y-%m-%d %H:%M} UTC was rolled back."
        )
        return Verdict("rolled back", sentences)
    failed = ", ".join(name for name, passed in live.checks.items() if not passed)
    if live.forced:
        sentences.append(f"Checks that failed: {failed}. The reason to release: {live.forced}")
        return Verdict("released by force", sentences)
    if failed:
        sentences.append(f"Warnings: {failed}.")
    return Verdict("released", sentences)


class Changes(NamedTuple):
    """All metrics of the release that is shown and the one before it."""

    before: int | None  # None for the first release
    metrics: list[MetricChange]


def changes_of(
    run: Run, releases: Releases, shown: Release, history: Sequence[Mapping[str, Any]]
) -> Changes:
    """Against the last release in the history before the one that is shown. Raises StoreError for
    damaged figures."""
    earlier = [line for line in history if line["release"] < shown.number]
    last: Mapping[str, Any] = max(earlier, key=lambda line: line["release"], default={})
    before = releases.get(last.get("release"))  # else no longer kept, as are its queries' figures
    figures = query_figures(run.folder, before) if before else {}
    changes = metric_changes(
        last.get("metrics", {}), shown.metrics, figures, query_figures(run.folder, shown)
    )
    return Changes(last.get("release"), list(changes))
