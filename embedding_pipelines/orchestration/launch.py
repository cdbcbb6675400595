"""Runs a pipeline in this process, on the instance that the web UI shows."""

from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from embedding_pipelines.errors import EmbeddingPipelinesError
from embedding_pipelines.orchestration.build import pipeline_definitions
from embedding_pipelines.orchestration.instance import open_instance
from embedding_pipelines.orchestration.partitions import all_buckets
from embedding_pipelines.orchestration.resources import WarehouseResource
from embedding_pipelines.pipeline import PipelineSpec
from embedding_pipelines.progress import Progress
from embedding_pipelines.warehouse import Warehouse

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}  # the run's log has it all


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `problem` is empty if it did well."""

    run_id: str
    problem: str


def run_pipeline(home: Path, spec: PipelineSpec, progress: Progress) -> Outcome:
    """Bring all buckets of a pipeline up to date in one run, from the source to the release.

    Raises BusyError if another process is just doing that.
    """
    definitions = pipeline_definitions([spec], progress=progress, warehouse=WarehouseResource(folder=str(home)))
    folder = Warehouse(home).pipeline(spec.name)
    with folder.lock("run", timeout_seconds=0), open_instance(home) as instance:
        job = definitions.resolve_job_def(spec.name)
        result = job.execute_in_process(
            instance=instance, tags=all_buckets(spec), raise_on_error=False, run_config=QUIET
        )
        return Outcome(result.run_id, "" if result.success else _problem(result))


def _problem(result: dg.ExecuteInProcessResult) -> str:
    """The sentence of the first failure: a step's own, else that of a check that is in the way."""
    for event in result.all_events:
        if event.is_step_failure and event.step_failure_data.error:
            failure = event.step_failure_data
            if failure.user_failure_data is not None and failure.user_failure_data.description:
                return failure.user_failure_data.description
            return f"Step {event.step_key!r} failed: {failure.error.message.strip()}"
    failed = [
        f"{evaluation.check_name}: {evaluation.description}"
        for evaluation in result.get_asset_check_evaluations()
        if not evaluation.passed
    ]
    if failed:
        return "Checks stand in the way of the release:\n" + "\n".join(f"  {line}" for line in failed)
    raise EmbeddingPipelinesError(f"Run {result.run_id} failed without an event that says why.")
