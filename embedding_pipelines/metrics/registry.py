"""All metrics, of this folder and of other packages; first those of which more is better."""

from embedding_pipelines.metrics.base import Metric
from embedding_pipelines.plugins import objects

_OBJECTS = objects("metrics", Metric)
METRICS = {metric.name: metric for metric in sorted(_OBJECTS.values(), key=lambda m: m.direction)}
