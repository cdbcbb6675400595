"""old_line: while a pipeline migrates to another model, the line of the model that it leaves is kept
up, by the whole chain, in the place where it has always been.

Searches read it until the cutover, and may go back to it for `migration.keep_old_days` after that.
"""

import itertools
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.files import read_json
from embedding_pipelines.progress import StepReport, sum_reports
from embedding_pipelines.releases import read_releases
from embedding_pipelines.run import Run
from embedding_pipelines.spec.pipeline import PipelineSpec, fingerprint
from embedding_pipelines.steps.base import Options, Reports, Step
from embedding_pipelines.steps.embeddings import RETRY, EmbeddingsStep
from embedding_pipelines.steps.release import FORCE, ReleaseStep
from embedding_pipelines.storage.warehouse import NEW_LINE

# With which step of the line a run with an option begins, in the order of the steps.
FIRST: Mapping[str, str] = {RETRY: EmbeddingsStep.name, FORCE: ReleaseStep.name}


class OldLineStep(Step):
    name = "old_line"
    description = (
        "The line of the model that the pipeline leaves: searches read it until the cutover, and can "
        "go back to it."
    )
    sentence = "{words}"
    options = (*EmbeddingsStep.options, *ReleaseStep.options)

    def applies(self, spec: PipelineSpec) -> bool:
        return spec.migration is not None

    def configuration(self, spec: PipelineSpec) -> str:
        return fingerprint(spec.migration)

    def current(self, run: Run, partition: str | None = None) -> StepReport | None:
        old = old_line_of(run)
        if old is None:
            return StepReport(self.name, False, {"words": "no longer kept up"})
        reports = list[StepReport]()
        with old:
            for step in _chain(old):
                report = step.whole(old)
                if report is None:  # what follows asks for its rows
                    return None
                reports.append(report)
        return _report(reports, changed=False)

    def work(self, run: Run, partitions: Sequence[str], options: Options = None) -> Reports:
        """All of the chain for the old model; with an option of a step, what comes from there on.
        Raises ConfigError if both models are one space, and as the steps do."""
        values = {name: value for name, value in (options or {}).items() if value}
        report = None if values else self.current(run)
        yield report or self._keep_up(run, values)

    def _keep_up(self, run: Run, options: Mapping[str, Any]) -> StepReport:
        old = old_line_of(run)
        assert old is not None
        reports = list[StepReport]()
        with old:
            trains = old.spec.model.trains or run.spec.model.trains  # its space comes with training
            if not trains and old.model.space == run.model.space:
                raise ConfigError(
                    f"Pipeline {run.spec.name!r}: migration.old_model gives the vectors that `model` "
                    "gives, so there is nothing to migrate. Leave `migration` out."
                )
            first = next((step for name, step in FIRST.items() if name in options), None)
            steps = itertools.dropwhile(lambda step: first not in (None, step.name), _chain(old))
            for step in steps:
                values = {each.name: options.get(each.name) for each in step.options}
                own = list(step.work(old, old.spec.partition_names, values))
                reports.append(sum_reports(step.name, own) if step.partitioned else own[0])
        return _report(reports, changed=any(report.changed for report in reports))


def old_line_of(run: Run) -> Run | None:
    """The old line of a pipeline that migrates, to be closed by the caller; None without a
    migration, for that line itself, and once it is no longer kept up."""
    if run.spec.migration is None or run.is_old_line:
        return None
    until = kept_until(run)
    if until is not None and datetime.now(UTC) > until:
        return None
    return Run(run.spec, run.warehouse, run.progress, is_old_line=True)


def lines_of(run: Run) -> list[Run]:
    """The run, and the old line where that is kept up, which the caller closes."""
    old = old_line_of(run)
    return [run] if old is None else [run, old]


def is_cut_over(run: Run) -> bool:
    """Whether searches read the new line."""
    releases = read_releases(run.folder)
    live = releases.get(releases.live)
    return live is not None and live.line == NEW_LINE


def kept_until(run: Run) -> datetime | None:
    """When the old line is no longer kept up; None before the cutover."""
    migration, record = run.spec.migration, read_json(run.folder.cutover)
    if migration is None or record is None or not is_cut_over(run):
        return None
    return datetime.fromisoformat(record["at"]) + timedelta(days=migration.keep_old_days)


def _chain(old: Run) -> list[Step]:
    from embedding_pipelines.steps.chain import steps_of  # which finds this step, too

    return [step for step in steps_of(old.spec) if step.name != OldLineStep.name]


def _report(reports: Sequence[StepReport], changed: bool) -> StepReport:
    values = {report.step: report.statistics for report in reports}
    release, embedded = values["release"], values.get("embeddings", {}).get("embedded", 0)
    words = (
        f"{release['rows']:,} rows, {embedded:,} embedded, release {release['release']}, "
        f"live: {release['live']}"
    )
    statistics = {"words": words, "rows": release["rows"], "release": release["release"]}
    return StepReport(OldLineStep.name, changed, statistics)
