"""Partitions: those of a pipeline, and how a run is told to take all of them at once."""

import dagster as dg

from embedding_pipelines.spec.pipeline import PipelineSpec

RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


def partitions(spec: PipelineSpec) -> dg.StaticPartitionsDefinition:
    return dg.StaticPartitionsDefinition(spec.partition_names)


def all_partitions(spec: PipelineSpec) -> dict[str, str]:
    """Tags of a run over every partition; with `single_run` policies the whole chain is one run."""
    return {RANGE_START: spec.partition_names[0], RANGE_END: spec.partition_names[-1]}
