"""Partitions: the buckets of a pipeline, and how a run is told to take all of them at once."""

import dagster as dg
from dagster import AssetExecutionContext

from embedding_pipelines.spec.pipeline import PipelineSpec

RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


def buckets(spec: PipelineSpec) -> dg.StaticPartitionsDefinition:
    return dg.StaticPartitionsDefinition(spec.bucket_names)


def all_buckets(spec: PipelineSpec) -> dict[str, str]:
    """Tags of a run over every bucket; with `single_run` policies the whole chain is one run."""
    return {RANGE_START: spec.bucket_names[0], RANGE_END: spec.bucket_names[-1]}


def bucket_keys(context: AssetExecutionContext) -> list[str]:
    """The buckets that this run is to do, in order."""
    return sorted(context.partition_keys)
