"""release: the `live` pointer moves to the newest table version, unless a check blocks it."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from embedding_pipelines.errors import ReleaseError
from embedding_pipelines.progress import StepReport
from embedding_pipelines.quality.base import Outcome
from embedding_pipelines.quality.evaluate import STRUCTURE
from embedding_pipelines.releases import (
    Release,
    Releases,
    append_history,
    is_gone,
    newest_number,
    read_releases,
    serve_alike,
    tagged_versions,
    write_releases,
)
from embedding_pipelines.run import Run, line_of
from embedding_pipelines.spec.pipeline import PipelineSpec, fingerprint
from embedding_pipelines.steps.base import Option, Options, Reports, Step
from embedding_pipelines.steps.checks import CheckRecord, current_checks, read_checks
from embedding_pipelines.steps.codec import codec_path, load_codec
from embedding_pipelines.steps.vector_store import (
    TableState,
    open_table,
    other_state,
    stored_space,
    table_state,
)

FORCE = "force_reason"  # the step's option


class ReleaseStep(Step):
    name = "release"
    inputs = ("checks",)
    description = (
        "Moves the live pointer to the newest table version, if all blocking checks passed."
    )
    technologies = ("{spec.store.kind}",)
    sentence = "release {release}, live: {live}"
    row_statistic = "rows"
    identity = ("release",)
    options = (Option(FORCE, "", "Why to release what quality checks block; empty: do not."),)

    def configuration(self, spec: PipelineSpec) -> str:
        own = [] if spec.permissions is None else [spec.permissions]
        return fingerprint(spec.evaluation, spec.store, spec.search, *own)

    def current(self, run: Run, partition: str | None = None) -> StepReport | None:
        """The newest release is live and serves what a run would release now."""
        releases, state = read_releases(run.folder), table_state(run)
        own = own_releases(run, releases)
        newest = own[-1] if own else None
        if state is None or newest is None:
            return None
        if _is_live_line(run, releases) and releases.live != newest.number:
            return None
        if newest_number(run.folder) < newest.number:  # a kill kept it out of the history
            return None
        if not serve_alike(newest, _candidate(run, releases, state)):
            return None
        if newest.pushed != state.pushed:
            return None
        return StepReport(self.name, False, _statistics(newest, releases))

    def work(self, run: Run, partitions: Sequence[str], options: Options = None) -> Reports:
        """The option `force_reason` says why to release a table that quality checks block."""
        yield release(run, (options or {}).get(FORCE, ""))


def release(run: Run, force_reason: str = "") -> StepReport:
    """Make the newest table version live, unless the newest release is just that: running again
    without changes neither adds a release nor undoes a rollback.

    Raises ReleaseError unless just this version passed every check that blocks. A reason overrules
    the checks of quality; a table whose structure is broken is never released.
    """
    name = run.spec.name
    checked = _newest_checked(run)
    if checked is None:
        raise ReleaseError(
            f"Pipeline {name!r}: the newest table version was not checked. Run "
            f"`embedding-pipelines run {name}` first."
        )
    state, record = checked
    failed = [check.name for check in record.checks if check.blocks]
    if failed and not (force_reason and STRUCTURE.keys().isdisjoint(failed)):
        live = read_releases(run.folder).live
        stays = f"release {live} stays live" if live else "there is no release yet"
        reasons = [f"\n  {check.name}: {check.sentence}" for check in record.checks if check.blocks]
        raise ReleaseError(
            f"Pipeline {name!r}: table version {state.version} failed {', '.join(failed)}; {stays}."
            f"{''.join(reasons)}"
        )
    before = read_releases(run.folder)
    releases = _drop_lost(run, before)
    candidate = _candidate(run, releases, state, record)
    candidate = candidate.model_copy(update={"forced": force_reason if failed else ""})
    own = own_releases(run, releases)
    newest = own[-1] if own else None
    if newest and serve_alike(newest, candidate) and releases.get(releases.live):
        if newest_number(run.folder) < newest.number:  # a run was killed before it wrote this
            append_history(run.folder, newest, run.usage())
            _drop_tables(run, releases)
        # What was pushed since and changed nothing is in it, too.
        newest = newest.model_copy(update={"pushed": candidate.pushed})
        rest = [newest if entry is own[-1] else entry for entry in releases.releases]
        releases = releases.model_copy(update={"releases": rest})
        if releases != before:
            write_releases(run.folder, releases)
        return StepReport(ReleaseStep.name, False, _statistics(newest, releases))
    too_many = [*own, candidate][: -run.spec.store.keep_releases]
    keep = [entry for entry in [*releases.releases, candidate] if entry not in too_many]
    is_live = _is_live_line(run, releases)
    live = candidate.number if is_live else releases.live
    releases = Releases(live=live, releases=keep)
    _tag_tables(run, releases)
    write_releases(run.folder, releases)
    append_history(run.folder, candidate, run.usage())
    _drop_tables(run, releases)
    return StepReport(ReleaseStep.name, True, _statistics(candidate, releases))


def held_back_by(run: Run) -> list[Outcome]:
    """The checks that hold back the newest table version of the run's line; none if it is
    released."""
    state, record = table_state(run), current_checks(run)
    stored = [(entry.table, entry.version) for entry in read_releases(run.folder).releases]
    if state is None or record is None or (state.table, state.version) in stored:
        return []
    return [check for check in record.checks if check.blocks]


def own_releases(run: Run, releases: Releases) -> list[Release]:
    """Those of the run's line: all, unless the pipeline migrates to another model."""
    if run.spec.migration is None:
        return releases.releases
    return releases.of_line(line_of(run.spec, run.is_old_line))


def _is_live_line(run: Run, releases: Releases) -> bool:
    """Whether what a run releases becomes live: not where searches read the other line, which
    `migrate cutover` and `rollback` alone change."""
    live = releases.get(releases.live)
    return live is None or live in own_releases(run, releases)


def candidate_of(run: Run) -> tuple[Release, CheckRecord] | None:
    """What releasing the newest table version would make, and its checks; None if it was not
    checked as the pipeline is now configured. Raises StoreError or CompressionError for what is
    damaged."""
    checked = _newest_checked(run)
    if checked is None:
        return None
    return _candidate(run, read_releases(run.folder), *checked), checked[1]


def _newest_checked(run: Run) -> tuple[TableState, CheckRecord] | None:
    state, record = table_state(run), read_checks(run)
    if state is None or record is None or not record.is_of(state) or codec_path(run) is None:
        return None
    table, configured = open_table(run, load_codec(run))  # the file may have changed since
    # A run that died may have cleaned up a version that was never released.
    is_there = state.table == configured and not table.lacks(state.version)
    return (state, record) if is_there else None


def _candidate(
    run: Run, releases: Releases, state: TableState, record: CheckRecord | None = None
) -> Release:
    """What releasing the newest table version makes, with its checks if they are given."""
    path = codec_path(run)
    assert path is not None  # callers have loaded it
    spec, numbers = run.spec, [entry.number for entry in releases.releases]
    return Release(
        number=max([releases.live or 0, newest_number(run.folder), *numbers]) + 1,
        table=state.table,
        version=state.version,
        rows=state.rows,
        space=stored_space(run, load_codec(run)),
        codec=path.name,
        cleaning=spec.preprocessing.clean.version,
        spec=spec.model_copy(update={"model": run.release_options(), "migration": None}),
        released_at=datetime.now(UTC),
        checks={check.name: check.passed for check in record.checks} if record else {},
        metrics=record.metrics if record else {},
        override=run.override,
        pushed=state.pushed,
        line=line_of(spec, run.is_old_line),
    )


def _drop_lost(run: Run, releases: Releases) -> Releases:
    """The releases without those of which nothing is left to go back to."""
    gone = [entry for entry in releases.releases if is_gone(run.folder, entry)]
    if gone:
        numbers = ", ".join(str(entry.number) for entry in gone)
        run.progress.note(f"release {numbers} is gone and is dropped.")
    rest = [entry for entry in releases.releases if entry not in gone]
    return releases.model_copy(update={"releases": rest})


def _tag_tables(run: Run, releases: Releases) -> None:
    """Tag the versions of kept releases before the pointer moves."""
    for name in {entry.table for entry in releases.releases}:
        table = run.spec.store.table(run.warehouse.tables, name)
        table.tag(tagged_versions(releases, name))


def _drop_tables(run: Run, releases: Releases) -> None:
    """Remove this pipeline's tables that no kept release needs."""
    store, folder = run.spec.store, run.warehouse.tables
    in_use, beside = {entry.table for entry in releases.releases}, other_state(run)
    in_use |= {beside.table} if beside is not None else set()
    for name in store.names(folder):
        if name not in in_use and name.rpartition("-")[0] == run.spec.name:
            store.drop(folder, name)


def _statistics(release: Release, releases: Releases) -> dict[str, Any]:
    return {
        "release": release.number,
        "live": releases.live,
        "table": release.table,
        "version": release.version,
        "rows": release.rows,
        "space": str(release.space),
        "kept_releases": [entry.number for entry in releases.releases],
        **({"override": release.override} if release.override else {}),
        **release.metrics,
    }
