"""What a pipeline file may say under `receipts:`: which of the queries that a server answers are
kept, to check later candidates with."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from embedding_pipelines.spec.evaluation import Share


class ReceiptOptions(BaseModel):
    """Kept with each query: its time, what it was shown, and what people say of that."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: Share = 0.0  # of the queries, chosen by chance; 0: none is kept
    # `hash`: a salted hash in place of the query, which tells equal ones and can check nothing.
    keep: Literal["text", "hash"] = "text"
