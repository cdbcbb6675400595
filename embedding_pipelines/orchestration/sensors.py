"""Sensors: each pipeline has one that sees what of its source is not released, and asks for one
run; a pipeline whose provider answers later has another, that asks for one when a batch job has
ended.

`decide` is the whole logic of the first, a pure function; the sensor only looks (`steps/pending`)
and passes on its answer.
"""

import contextlib
import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg

from embedding_pipelines.embedding.batch_jobs import BatchJobs
from embedding_pipelines.errors import BusyError, EmbeddingPipelinesError
from embedding_pipelines.files import read_json
from embedding_pipelines.orchestration.dead_runs import end_dead_runs
from embedding_pipelines.orchestration.looks import Memory, list_source, look
from embedding_pipelines.orchestration.metadata import asset_key
from embedding_pipelines.orchestration.partitions import all_partitions
from embedding_pipelines.orchestration.resources import WarehouseResource
from embedding_pipelines.orchestration.source import (
    SOURCE,
    listing_of,
    listing_version,
    observe,
)
from embedding_pipelines.run import Run
from embedding_pipelines.spec.pipeline import PipelineSpec, fingerprint
from embedding_pipelines.steps.old_line import lines_of
from embedding_pipelines.steps.pending import Pending, pending
from embedding_pipelines.storage.warehouse import parse_state

TICK_SECONDS = 30
FIRST_WAIT_SECONDS = 900.0  # after a run that ended before its release; each further one doubles it
LONGEST_WAIT_SECONDS = 86_400.0  # and the wait where only a person can help
AGAIN_SECONDS = 900.0  # between two runs that are asked for by the same batch jobs
BATCH_TICK_SECONDS = 60  # a batch job takes minutes to hours
DATA_VERSION_TAG = "dagster/data_version"


@dataclass(frozen=True)
class Cursor:
    """What the sensor's cursor remembers: for which files and options it asked last, how often, and
    when (seconds since 1970) it last asked or saw a run under way."""

    version: str
    times: int
    at: float


@dataclass(frozen=True)
class Decision:
    """Whether to ask for a run now, why or why not, and the next cursor."""

    run_key: str | None
    reason: str
    cursor: str


def decide(
    state: Pending, version: str, is_under_way: bool, cursor: str | None, now: float
) -> Decision:
    """Ask at once for what nobody was asked for yet, then again after growing waits until it is
    released.

    `version` stands for the files as they are and the pipeline's options: new files or a corrected
    pipeline file ask at once. A candidate that checks hold back needs a person and waits longest.
    A cursor that was reset asks at once, under a key that was never used.
    """
    last = _parse(cursor)
    if state.is_empty:
        return Decision(None, str(state), json.dumps(None))
    if last is None or last.version != version:
        # All was released at the last look, and now a candidate is held back: somebody's own run
        # made it, who has seen why.
        times = 1 if state.held_back_by and last is None and cursor is not None else 0
        last = Cursor(version, times, now)
    if is_under_way:
        last = Cursor(version, last.times, now)
        return Decision(None, f"{state}; a run is under way", _dump(last))
    if state.in_batch_jobs:
        reason = "texts are in batch jobs; their own sensor asks for a run when one has ended"
        return Decision(None, reason, _dump(last))
    wait = _wait_seconds(last.times, bool(state.held_back_by))
    if 0 <= now - last.at < wait:  # a clock that was put back never makes the wait longer
        due = datetime.fromtimestamp(last.at + wait, UTC).strftime("%Y-%m-%d %H:%M UTC")
        return Decision(None, f"{state}; a run is asked for again at {due}", _dump(last))
    following = Cursor(version, last.times + 1, now)
    return Decision(f"{version}:{now}", str(state), _dump(following))


def _wait_seconds(times: int, is_held_back: bool) -> float:
    """Before the next run, after `times` were asked for."""
    if not times:
        return 0.0
    if is_held_back:
        return LONGEST_WAIT_SECONDS
    return min(FIRST_WAIT_SECONDS * 2.0 ** min(times - 1, 16), LONGEST_WAIT_SECONDS)


def _parse(cursor: str | None) -> Cursor | None:
    """What a cursor remembers; None of an empty one, and of one that somebody else wrote."""
    try:
        values = json.loads(cursor) if cursor else None
        memory = parse_state(Cursor, values) if isinstance(values, dict) else None
        return memory and Cursor(str(memory.version), int(memory.times), float(memory.at))
    except (ValueError, TypeError):
        return None


def _dump(cursor: Cursor) -> str:
    return json.dumps(asdict(cursor))


def pipeline_sensor(spec: PipelineSpec, home: Path) -> dg.SensorDefinition:
    """Asks for one run over all partitions while the source's files are not those of the newest
    release, and reports them as the source's new version."""

    @dg.sensor(
        name=f"{spec.name}_source_sensor",
        job_name=spec.name,
        minimum_interval_seconds=TICK_SECONDS,
        description=f"Asks for a run of {spec.name!r} when files of its source are new, changed or "
        f"deleted. If that run releases nothing, again after {FIRST_WAIT_SECONDS / 60:.0f} minutes, "
        f"then after twice that, up to {LONGEST_WAIT_SECONDS / 3600:.0f} hours; what checks hold "
        f"back, after {LONGEST_WAIT_SECONDS / 3600:.0f} hours. Reset the cursor to ask at once.",
    )
    def source_sensor(
        context: dg.SensorEvaluationContext, warehouse: WarehouseResource
    ) -> dg.SensorResult:
        run = Run(spec, warehouse.open(home))
        try:
            end_dead_runs(context.instance, run.warehouse)
            memory, now = Memory.of(context.cursor), time.time()
            if spec.events is None:
                cursor, seen = context.cursor, list_source(run, now)
            elif not memory.is_calm and _is_under_way(run, context.instance):
                return dg.SensorResult(skip_reason="a run is under way")
            else:
                cursor, seen = memory.decision, look(run, memory, now)
            state = pending(run, seen.files)
            is_under_way = not state.is_empty and _is_under_way(run, context.instance)
        except EmbeddingPipelinesError as error:
            return dg.SensorResult(skip_reason=str(error))
        version = listing_version(listing_of(seen.files), fingerprint(spec))
        decision = decide(state, version, is_under_way, cursor, now)
        following = decision.cursor
        if spec.events is not None:
            following = Memory(seen.listed_at, decision.cursor).dump()
        if seen.note:
            context.log.warning(seen.note)
        if decision.run_key is None:
            return dg.SensorResult(skip_reason=decision.reason, cursor=following)
        context.log.info(decision.reason)
        tags = {**all_partitions(spec), "why": state.brief}
        request = dg.RunRequest(run_key=decision.run_key, tags=tags)
        version, metadata = observe(seen.files)
        observation = dg.AssetObservation(
            asset_key(spec, SOURCE),
            description=decision.reason,
            metadata=metadata,
            tags={DATA_VERSION_TAG: version},
        )
        return dg.SensorResult(run_requests=[request], asset_events=[observation], cursor=following)

    return source_sensor


def _is_under_way(run: Run, instance: dg.DagsterInstance) -> bool:
    """Whether a run of the pipeline waits in Dagster's queue, or a process is at work on it. What
    Dagster calls started may have died; the lock has not."""
    waiting = dg.RunsFilter(
        job_name=run.spec.name,
        statuses=[
            dg.DagsterRunStatus.QUEUED,
            dg.DagsterRunStatus.NOT_STARTED,
            dg.DagsterRunStatus.STARTING,
        ],
    )
    if instance.get_runs(waiting, limit=1):
        return True
    if not run.folder.has_lock("run"):
        return False
    try:
        with run.folder.lock("run", timeout_seconds=0):
            return False
    except BusyError:
        return True


def batch_sensor(spec: PipelineSpec, home: Path) -> dg.SensorDefinition:
    """Asks for a run when texts that were with the service have come back."""

    @dg.sensor(
        name=f"{spec.name}_batch_sensor",
        job_name=spec.name,
        minimum_interval_seconds=BATCH_TICK_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,  # the pipeline file asks for it
        description=f"Asks for a run of {spec.name!r} when a batch of its texts has been embedded.",
    )
    def sensor(
        context: dg.SensorEvaluationContext, warehouse: WarehouseResource
    ) -> dg.SensorResult:
        opened, nothing = warehouse.open(home), "No batch job is running."
        end_dead_runs(context.instance, opened)
        try:
            with contextlib.ExitStack() as stack:
                lines = [stack.enter_context(line) for line in lines_of(Run(spec, opened))]
                lines = [
                    line
                    for line in lines
                    if line.spec.model.uses_batch_jobs and line.folder.batch_jobs.exists()
                ]
                if not lines:
                    return dg.SensorResult(skip_reason=nothing)
                # Within the lock nobody replaces or removes a marker.
                stack.enter_context(opened.batch_jobs_lock(timeout_seconds=0))
                states = [state for line in lines if (state := _jobs_of(line)) is not None]
        except EmbeddingPipelinesError as error:
            return dg.SensorResult(skip_reason=str(error))
        if not (ended := [state for state in states if state.ready]):
            reasons = dict.fromkeys(state.words for state in states)
            return dg.SensorResult(skip_reason=" ".join(reasons) or nothing)
        ready = sorted(set[str]().union(*(state.ready for state in ended)))
        # Dagster starts one run per key: if that one failed, it is asked for again after a while.
        again = int((time.time() - max(state.written_at for state in ended)) / AGAIN_SECONDS)
        tags = {**all_partitions(spec), "why": "a batch job has ended"}
        request = dg.RunRequest(run_key=f"{'+'.join(ready)}:{again}", tags=tags)
        return dg.SensorResult(run_requests=[request])

    return sensor


@dataclass(frozen=True)
class _Jobs:
    """The batch jobs of a line: the names of those that have ended, how the others stand, and when
    that was put on record."""

    ready: set[str]
    words: str
    written_at: float


def _jobs_of(run: Run) -> _Jobs | None:
    """None without any."""
    marker = run.folder.batch_jobs
    own = set((read_json(marker) or {"batches": []})["batches"])
    if not own:
        return None
    folder = run.warehouse.batch_jobs
    jobs = BatchJobs(folder, run.model, run.cache, "document", attempts=1)
    # Those that another pipeline's run has collected are on record no more.
    ready = {*(own - {job.tag for job in jobs.jobs()}), *jobs.finished()}
    return _Jobs(ready, "" if ready else str(jobs.running()), marker.stat().st_mtime)
