"""What a pipeline file may say under `evaluation:`, and the evidence that `optimize` leaves under
`optimized:`."""

import re
from collections.abc import Iterable, Sequence
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

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


def _check_names(names: Iterable[str], every: Sequence[str], what: str) -> None:
    """Raise ValueError for names that are none of `every`."""
    wrong = [name for name in names if name not in every]
    if wrong:
        words = [f"{name!r} is no {what}.{did_you_mean(name, every)}" for name in wrong]
        raise ValueError(f"{' '.join(words)} Write one of {', '.join(every)}")


class Evaluation(BaseModel):
    """What to measure before each release, and what must hold. All paths are relative to the home
    folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # JSON Lines or CSV with id (`_id`, `query_id`) and text (`query`), as in BEIR.
    queries: str | None = None
    # Tab or comma separated: query id, document id, relevance, as in BEIR.
    qrels: str | None = Field(None, validate_default=True)
    pairs: str | None = None  # CSV with sentence1, sentence2, score
    label: str | None = None  # a metadata column
    known_items: int = Field(128, ge=0, le=10_000)  # queries taken from the corpus itself; 0: none
    embedded_again: int = Field(32, ge=0, le=1_000)  # stored texts, to compare vectors; 0: none
    may_lose: Share = 0.02  # of a query metric, against the live release
    may_shrink: Share = 0.5  # of the live release's documents; 1: all of them
    require: dict[str, float] = {}  # metric -> least value, or most, as its direction says
    # Check -> what it does when it fails, if not what it does by default.
    checks: dict[str, Effect] = {}

    @field_validator("qrels")
    @classmethod
    def _check_pair(cls, qrels: str | None, info: ValidationInfo) -> str | None:
        if (info.data.get("queries") is None) == (qrels is None):
            return qrels
        one, missing = ("qrels", "queries") if qrels else ("queries", "qrels")
        raise ValueError(f"{one} needs {missing}: queries, and the documents relevant to them")

    @field_validator("require")
    @classmethod
    def _check_metrics(cls, require: dict[str, float]) -> dict[str, float]:
        directed = _directed_metrics() if require else []
        _check_names(require, directed, "metric that can be better or worse")
        return require

    @field_validator("checks")
    @classmethod
    def _check_checks(cls, checks: dict[str, Effect]) -> dict[str, Effect]:
        every = names("quality.checks") if checks else []  # which import this file
        _check_names(checks, every, "check")
        return checks


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
