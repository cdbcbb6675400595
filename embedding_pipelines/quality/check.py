"""What a check of a candidate comes to."""

from dataclasses import dataclass, field
from typing import Any

from embedding_pipelines.spec.evaluation import Effect

# What must hold of the table itself, whatever anyone says; `quality.CHECKS` judge what it is worth.
STRUCTURE = {
    "counts_add_up": "Every document is in the table through its chunks, was empty, or was refused by the provider; "
    "none is lost or doubled.",
    "vectors_are_sound": "No vector is zero, NaN or infinite; normalized models give unit length.",
    "dimensions_match": "Embeddings and table have the dimensions that model and codec promise.",
    "space_is_one": "All partitions and the table are of the space that queries will be embedded in.",
}


@dataclass(frozen=True)
class Check:
    """The outcome of one check; `statistics` are the figures it compared."""

    name: str
    passed: bool
    sentence: str
    statistics: dict[str, Any] = field(default_factory=dict)
    effect: Effect = "block"  # what it does if it did not pass
    conclusive: bool = (
        True  # whether it is settled; False: a service was away, and the next run asks again
    )

    @property
    def blocks(self) -> bool:
        """Whether it stands in the way of a release."""
        return not self.passed and self.effect == "block"
