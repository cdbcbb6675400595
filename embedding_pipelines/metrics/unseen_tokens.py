"""How much of the texts the model never saw: vectors say nothing of it, and no search finds it."""

from embedding_pipelines.metrics.base import metric
from embedding_pipelines.metrics.evidence import Evidence


@metric("lower", "tokens")
def tokens_unseen(evidence: Evidence) -> float | None:
    """Tokens that were cut off documents, or that stand in chunks beyond the model's limit."""
    return float(evidence.unseen_tokens) if evidence.vectors else None
