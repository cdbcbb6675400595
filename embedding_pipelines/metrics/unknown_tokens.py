"""How much of its texts a model does not know: a vocabulary lacks whole scripts, and then any two
texts in them are the same to the model."""

from embedding_pipelines.metrics.base import metric
from embedding_pipelines.metrics.evidence import Evidence


@metric("lower", "share")
def unknown_token_share(evidence: Evidence) -> float | None:
    """Share of the texts' tokens that the model's vocabulary lacks."""
    return evidence.unknown_tokens / evidence.text_tokens if evidence.text_tokens else None
