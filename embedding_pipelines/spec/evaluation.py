"""What a pipeline file may say under `evaluation:`, and the evidence that `optimize` leaves under
`optimized:`."""

import re
from datetime import date
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from embedding_pipelines.errors import did_you_mean
from embedding_pipelines.plugins import names

Effect = Annotated[
    Literal["block", "warn", "off"],
    BeforeValidator(lambda value: "off" if value is False else value),  # as YAML reads a bare `off`
]


def _share(value: Any) -> Any:
    """`50%` as 0.5; whether another value is a number is pydantic's to say."""
    match = re.fullmatch(r"([0-9]+\.?[0-9]*) ?%", value) if isinstance(value, str) else None
    share = float(match[1]) / 100 if match else value
    if isinstance(share, int | float) and not 0 <= share <= 1:
        raise ValueError(f"{value} is no share: write a number from 0 to 1, or 0% to 100%")
    return share


Share = Annotated[float, BeforeValidator(_share)]


def _directed_metrics() -> list[str]:
    from embedding_pipelines.metrics.registry import METRICS

    return [name for name, metric in METRICS.items() if metric.direction != "neither"]


class Evaluation(BaseModel):
    """What to measure before each release, and what must hold. All paths are relative to the home
    folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # JSON Lines or CSV with id (`_id`, `query_id`) and text (`query`), as in BEIR.
    queries: str | None = None
    # Tab or comma separated: query id, document id, relevance, as in BEIR.
    qrels: str | None = None
    pairs: str | None = None  # CSV with sentence1, sentence2, score
    label: str | None = None  # a metadata column
    known_items: int = Field(128, ge=0, le=10_000)  # queries taken from the corpus itself; 0: none
    embedded_again: int = Field(32, ge=0, le=1_000)  # stored texts, to compare vectors; 0: none
    may_lose: Share = 0.02  # of a query metric, against the live release
    may_shrink: Share = 0.5  # of the live release's documents; 1: all of them
    require: dict[str, float] = {}  # metric -> least value, or most, as its direction says
    # Check -> what it does when it fails, if not what it does by default.
    checks: dict[str, Effect] = {}

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        directed = _directed_metrics() if self.require else []
        for name in self.require:
            if name not in directed:
                raise ValueError(
                    f"require: {name!r} is no metric that can be better or worse."
                    f"{did_you_mean(name, directed)} Write one of {', '.join(directed)}"
                )
        checks = names("quality.checks") if self.checks else []  # which import this file
        for name in self.checks:
            if name not in checks:
                raise ValueError(
                    f"checks: {name!r} is no check.{did_you_mean(name, checks)} Write one of "
                    f"{', '.join(checks)}"
                )
        if (self.queries is None) != (self.qrels is None):
            given, missing = ("queries", "qrels") if self.queries else ("qrels", "queries")
            raise ValueError(
                f"{given} needs {missing}: queries, and the documents relevant to them"
            )
        return self


class Optimized(BaseModel):
    """How the compression was chosen: written by `optimize`, read by people."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    measured_on: date  # `on` is a truth value in YAML
    method: str
    floor: float | None = None  # of recall@10 against exact search in the model's own space
    recall_at_10: float | None = None  # of queries that took no part in the choice
    lower_bound: float | None = None  # of that recall, one-sided, 95%
    queries: int | None = None
    bytes_per_vector: int | None = None
    times_smaller: float | None = None  # than float32 without compression and index
