"""Runs a pipeline in this process, on the instance that the web UI shows."""

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from embedding_pipelines.environment import instance_folder
from embedding_pipelines.errors import EmbeddingPipelinesError
from embedding_pipelines.files import write_json
from embedding_pipelines.orchestration.build import pipeline_definitions
from embedding_pipelines.orchestration.dead_runs import ENDED
from embedding_pipelines.orchestration.failures import (
    problem_of,
    readable_errors,
    readable_records,
    was_interrupted,
)
from embedding_pipelines.orchestration.instance import open_instance
from embedding_pipelines.orchestration.metadata import asset_key
from embedding_pipelines.orchestration.partitions import all_partitions
from embedding_pipelines.orchestration.records import is_of_another_machine, machine_tags
from embedding_pipelines.orchestration.resources import LogProgress, locked_warehouse
from embedding_pipelines.progress import Progress, Silent
from embedding_pipelines.releases import read_releases
from embedding_pipelines.remote import writing
from embedding_pipelines.run import Run
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.steps.chain import steps_of
from embedding_pipelines.steps.embeddings import RETRY, EmbeddingsStep
from embedding_pipelines.steps.old_line import OldLineStep, old_line_of
from embedding_pipelines.steps.release import FORCE, ReleaseStep, held_back_by
from embedding_pipelines.storage.warehouse import Warehouse

log = logging.getLogger(__name__)

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}  # the run's log has it all
HOME_TAG = "command_line"  # on runs from here; its value is the home folder
NO_RETRIES = {"dagster/max_retries": "0"}  # by the daemon: who typed the command can type it again


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `problem` is empty if it did well."""

    run_id: str
    problem: str


def run_pipeline(
    home: Path,
    spec: PipelineSpec,
    progress: Progress,
    force_reason: str = "",
    retry_rejected: bool = False,
    run_id: str | None = None,
) -> Outcome:
    """Bring all partitions of a pipeline up to date in one run, from the source to the release.

    With a reason only the release is made, though checks of the candidate's quality failed. With
    `retry_rejected` rejected texts are sent again, and no others, and what follows is done. `run_id`
    is a UUID that Dagster does not know yet; None: a new one.

    Raises BusyError if another run is just doing that, on this machine or another, BucketError if
    the warehouse's bucket does not answer, KeyboardInterrupt if the user stops it.
    """
    warehouse = Warehouse(home)
    with (
        warehouse.pipeline(spec.name).lock("run", timeout_seconds=0),
        writing(warehouse, spec.name, progress) as writer,
        readable_records(instance_folder(home)),
        open_instance(home) as instance,
    ):
        _end_dead_runs(instance, home, spec)
        resources = {"progress": progress, "warehouse": locked_warehouse(writer)}
        job = pipeline_definitions([spec], home, **resources).resolve_job_def(spec.name)
        tags = {**all_partitions(spec), **NO_RETRIES, HOME_TAG: str(home)}
        names: list[str] | None = None
        config = dict[str, Any]()
        if force_reason:
            names, config = _to_force(spec, warehouse, force_reason)
        elif retry_rejected:
            names, config = _to_retry(spec, warehouse)
        ops = {f"{spec.name}__{step}": {"config": values} for step, values in config.items()}
        try:
            result = job.execute_in_process(
                instance=instance,
                tags=tags,
                raise_on_error=False,
                run_config={**QUIET, **({"ops": ops} if ops else {})},
                asset_selection=[asset_key(spec, name) for name in names] if names else None,
                run_id=run_id,
            )
        except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError) as error:
            _end_dead_runs(instance, home, spec)  # this one
            raise KeyboardInterrupt from error
        if was_interrupted(result):
            raise KeyboardInterrupt
        if result.success and names is None:
            write_json(
                warehouse.pipeline(spec.name).last_run,
                {"instance": str(instance_folder(home))},
            )
        problem = "" if result.success else problem_of(result, instance_folder(home))
        return Outcome(result.run_id, problem)


Chosen = tuple[list[str], dict[str, Any]]  # steps, and their options


def _to_force(spec: PipelineSpec, warehouse: Warehouse, reason: str) -> Chosen:
    """What releases the lines that are held back; of one that is not, the reason is told."""
    run, names, config = Run(spec, warehouse), list[str](), dict[str, Any]()
    old = old_line_of(run)
    if old is not None and held_back_by(old):
        names, config = [OldLineStep.name], {OldLineStep.name: {FORCE: reason}}
    if not names or held_back_by(run):
        names += _from(spec, ReleaseStep.name)
        config |= {ReleaseStep.name: {FORCE: reason}}
    return names, config


def _to_retry(spec: PipelineSpec, warehouse: Warehouse) -> Chosen:
    """What sends the rejected texts of both lines again, and does what follows."""
    lines = [EmbeddingsStep.name]
    lines += [OldLineStep.name] if old_line_of(Run(spec, warehouse)) is not None else []
    names = [*lines[1:], *_from(spec, EmbeddingsStep.name)]
    return names, {name: {RETRY: True} for name in lines}


def _from(spec: PipelineSpec, first: str) -> list[str]:
    """The assets of the chain from a step on."""
    chain = itertools.dropwhile(lambda step: step.name != first, steps_of(spec))
    return [step.name for step in chain if step.is_asset and step.name != OldLineStep.name]


def run_work(
    home: Path, name: str, kind: str, run_id: str, work: Callable[[Progress], None]
) -> Outcome:
    """Do a piece of work on a pipeline as a Dagster run of its own, of the job `NAME__KIND`, whose
    log has the progress. Raises KeyboardInterrupt if somebody stops it."""

    @dg.op(name=kind)
    def op(context: dg.OpExecutionContext) -> None:
        with readable_errors():
            work(LogProgress(context.log, name))

    @dg.job(name=f"{name}__{kind}", executor_def=dg.in_process_executor)
    def job() -> None:
        op()

    with readable_records(instance_folder(home)), open_instance(home) as instance:
        try:
            result = job.execute_in_process(
                instance=instance,
                tags={**NO_RETRIES, HOME_TAG: str(home), **machine_tags(instance_folder(home))},
                raise_on_error=False,
                run_config=QUIET,
                run_id=run_id,
            )
        except dg.DagsterExecutionInterruptedError as error:
            raise KeyboardInterrupt from error
        if was_interrupted(result):
            raise KeyboardInterrupt
        return Outcome(run_id, "" if result.success else problem_of(result, instance_folder(home)))


def run_named(home: Path | str, name: str, progress: Progress | None = None) -> int | None:
    """For programs: bring a pipeline up to date, as the command `run` does. Returns the number of
    the live release, None if there is none.

    `progress` is told how far the run is; without one its notes are warnings in the log. Raises
    EmbeddingPipelinesError with the reason if a step fails or the candidate is held back.
    """
    home = Path(home).expanduser().absolute()
    spec = find_pipeline(name, home)
    outcome = run_pipeline(home, spec, progress or _Logged())
    if outcome.problem:
        raise EmbeddingPipelinesError(f"{name}: {outcome.problem}")
    return read_releases(Warehouse(home).pipeline(name)).live


class _Logged(Silent):
    def note(self, text: str) -> None:
        log.warning("%s", text)


def _end_dead_runs(instance: dg.DagsterInstance, home: Path, spec: PipelineSpec) -> None:
    """Mark as failed what a killed process left as running: whoever has the lock is the only one
    alive on this machine."""
    unfinished = dg.RunsFilter(
        job_name=spec.name,
        tags={HOME_TAG: str(home)},
        statuses=[
            dg.DagsterRunStatus.NOT_STARTED,
            dg.DagsterRunStatus.STARTING,
            dg.DagsterRunStatus.STARTED,
        ],
    )
    for run in instance.get_runs(unfinished):
        if not is_of_another_machine(run):
            instance.report_run_failed(run, ENDED)
