"""model: a provider that learns from the pipeline's own texts does so once, and again when its
options change.

New data does not teach it again: all vectors would change, and every text would have to be embedded
anew.
"""

from collections.abc import Iterator
from typing import Any

from embedding_pipelines.errors import EmbeddingPipelinesError, StoreError
from embedding_pipelines.files import read_json, write_json
from embedding_pipelines.progress import StepReport
from embedding_pipelines.providers.base import Provider
from embedding_pipelines.spec.pipeline import fingerprint
from embedding_pipelines.steps.chain import StepContext


def learn_model(context: StepContext, provider: Provider) -> StepReport:
    """Let the provider learn from all chunks. Raises SourceError if there is too little to learn
    from."""
    current = current_model(context, provider)
    if current is not None:
        return current
    statistics = {"texts": 0}

    def texts() -> Iterator[str]:
        for partition in context.spec.partition_names:
            if context.folder.chunks.manifest(partition) is None:
                raise StoreError(
                    f"Partition {partition!r} of {context.spec.name!r} has no chunks: materialize them first."
                )
            for batch in context.folder.chunks.read(partition, ["text"]):
                statistics["texts"] += batch.num_rows
                yield from batch["text"].to_pylist()

    provider.learn(texts())
    made = {
        "configuration": fingerprint(provider),
        "revision": provider.space.revision,
        "statistics": statistics,
    }
    write_json(context.folder.model, made)
    return StepReport("model", True, _statistics(statistics, provider))


def current_model(context: StepContext, provider: Provider) -> StepReport | None:
    """The report of a model that was learnt with the present options, None if there is something to
    do."""
    made = read_json(context.folder.model)
    if made is None or made["configuration"] != fingerprint(provider):
        return None
    try:
        statistics = _statistics(made["statistics"], provider)
    except EmbeddingPipelinesError:  # what was learnt is lost or damaged
        return None
    return (
        StepReport("model", False, statistics)
        if statistics["revision"] == made["revision"]
        else None
    )


def _statistics(statistics: dict[str, Any], provider: Provider) -> dict[str, Any]:
    return {
        **statistics,
        "dimensions": provider.space.dimensions,
        "revision": provider.space.revision,
    }
