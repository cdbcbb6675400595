"""All metrics: the `Metric` objects of this folder and those that other packages register."""

from embedding_pipelines.metrics.base import Metric
from embedding_pipelines.plugins import objects

METRICS: dict[str, Metric] = objects("metrics", Metric)
