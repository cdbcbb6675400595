"""Partitions: those of a pipeline, and how a run is told to take all of them at once."""

import dagster as dg

from embedding_pipelines.spec.pipeline import PipelineSpec

RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
PARTITION = "dagster/partition"
PARTITIONS = "partitions"  # on every run of a job: what all partitions are


def partitions(spec: PipelineSpec) -> dg.StaticPartitionsDefinition:
    return dg.StaticPartitionsDefinition(spec.partition_names)


def all_partitions(spec: PipelineSpec) -> dict[str, str]:
    """Tags of a run over every partition; with `single_run` policies the whole chain is one run."""
    return {RANGE_START: spec.partition_names[0], RANGE_END: spec.partition_names[-1]}


def job_tags(spec: PipelineSpec) -> dict[str, str]:
    """Tags of every run of a pipeline's job, from which `take_all_partitions` knows its range."""
    return {PARTITIONS: f"{spec.partition_names[0]}...{spec.partition_names[-1]}"}


def take_all_partitions(context: dg.InitResourceContext) -> None:
    """Make a run of a job for which nobody chose partitions one over all of them.

    The launchpad's button, `dagster job execute` and `dg launch --job` start such runs. Dagster
    (1.13) then fails in front of the first asset whose input has partitions, so the run gets its
    range before any step starts: in its record, and in the object that this process holds.
    """
    run = context.run
    if run is None or PARTITIONS not in run.tags or {PARTITION, RANGE_START} & run.tags.keys():
        return
    start, _, end = run.tags[PARTITIONS].partition("...")
    tags = {RANGE_START: start, RANGE_END: end}
    assert context.instance is not None
    context.instance.add_run_tags(run.run_id, tags)
    if isinstance(run.tags, dict):
        run.tags.update(tags)
