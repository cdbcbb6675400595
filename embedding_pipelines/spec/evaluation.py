"""What a pipeline file may say under `evaluation:`, and the evidence that `optimize` leaves under
`optimized:`.

Names and directions of all measures stand here too; how each is taken stands with its code.
"""

from datetime import date
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from embedding_pipelines.errors import did_you_mean

Effect = Literal["block", "warn", "off"]


def _effect(value: Any) -> Any:
    """`off` without quotes, which YAML takes for false."""
    return "off" if value is False else value


HIGHER, LOWER, NEITHER = "higher", "lower", "neither"

# name -> which way is better, what it is
METRICS: dict[str, tuple[str, str]] = {
    "ndcg_at_10": (HIGHER, "nDCG@10 of the judged queries"),
    "judged_recall_at_10": (HIGHER, "share of the judged documents among the first 10"),
    "judged_recall_at_100": (HIGHER, "share of the judged documents among the first 100"),
    "mrr_at_10": (HIGHER, "mean reciprocal rank of the first judged document among the first 10"),
    "pair_spearman": (HIGHER, "rank correlation of cosines with the scores of sentence pairs"),
    "knn_accuracy": (
        HIGHER,
        "share of chunks whose 10 nearest neighbours vote for their own label",
    ),
    "known_item_mrr": (
        HIGHER,
        "mean reciprocal rank (first 10) of the document that a query was taken from",
    ),
    "known_item_recall": (HIGHER, "share of these documents among the first 10"),
    "recall_at_10": (
        HIGHER,
        "share of the exact ten nearest in the model's own space that a search finds",
    ),
    "index_recall_at_10": (HIGHER, "share of the exact ten nearest codes that the index finds"),
    "codec_cosine": (HIGHER, "mean cosine of vectors with what is left of them after compression"),
    "canary_cosine": (
        HIGHER,
        "least cosine of the frozen canaries' vectors of today with those of the first run",
    ),
    "stored_cosine": (
        HIGHER,
        "least cosine of some stored vectors with their texts embedded again",
    ),
    "duplicate_rate": (LOWER, "share of vectors that came before"),
    "near_duplicate_rate": (
        LOWER,
        "share of sampled chunks with another one at a cosine of 0.98 or more",
    ),
    "short_rate": (LOWER, "share of chunks of four tokens or less, special tokens included"),
    "effective_rank": (
        HIGHER,
        "dimensions that the vectors really use: e to the entropy of the energies",
    ),
    "anisotropy": (LOWER, "mean cosine of two random vectors"),
    "hubness": (LOWER, "skewness of how often a vector is among the ten nearest of others"),
    "mean_norm": (NEITHER, "mean length of the vectors"),
    "mean_shift": (
        LOWER,
        "length of the difference of this release's mean vector and the last one's",
    ),
    "search_p50_ms": (LOWER, "median time of a search in the table, without embedding the query"),
    "search_p95_ms": (LOWER, "95th percentile of the same"),
}


# name -> what it does by default when it fails, what it says
CHECKS: dict[str, tuple[Effect, str]] = {
    "provider_is_unchanged": (
        "block",
        "Frozen canary texts get the vectors that they got the first time.",
    ),
    "vectors_belong_to_their_texts": (
        "block",
        "Stored vectors are those that their texts get when embedded again.",
    ),
    "input_types_differ": (
        "block",
        "Queries and documents get vectors of their own where the model wants that.",
    ),
    "known_items_are_found": (
        "block",
        "Queries from the corpus find the documents they were taken from.",
    ),
    "index_finds_the_nearest": ("block", "The index finds what a comparison with every row finds."),
    "not_worse_than_live": (
        "block",
        "No query measure has fallen by more than `evaluation.may_lose`, beyond chance; no table has become empty.",
    ),
    "space_is_healthy": (
        "warn",
        "Duplicates, short texts, hubs and unused dimensions are within what is usual.",
    ),
    "data_has_not_drifted": ("warn", "Vectors are distributed as those of the live release."),
    "required_metrics_hold": ("block", "All that the file requires under `evaluation.require`."),
}


class Evaluation(BaseModel):
    """What to measure before each release, and what must hold. All paths are relative to the home
    folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    queries: str | None = (
        None  # JSON Lines or CSV with id (`_id`, `query_id`) and text (`query`), as in BEIR
    )
    qrels: str | None = None  # tab or comma separated: query id, document id, gain, as in BEIR
    pairs: str | None = None  # CSV with sentence1, sentence2, score
    label: str | None = None  # a metadata column
    known_items: int = Field(128, ge=0, le=10_000)  # queries taken from the corpus itself; 0: none
    embedded_again: int = Field(
        32, ge=0, le=1_000
    )  # stored texts whose vectors are asked for again; 0: none
    may_lose: float = Field(
        0.02, ge=0, le=1
    )  # of nDCG or reciprocal rank, against the live release
    require: dict[str, float] = {}  # measure -> least value, or most, as its direction says
    # check -> what it does when it fails, if not what it does by default
    checks: dict[str, Annotated[Effect, BeforeValidator(_effect)]] = {}

    @model_validator(mode="after")
    def _known_names(self) -> Self:
        for name in self.require:
            if name not in METRICS or METRICS[name][0] == NEITHER:
                judged = [other for other, (better, _) in METRICS.items() if better != NEITHER]
                known, guess = ", ".join(judged), did_you_mean(name, judged)
                raise ValueError(
                    f"require: {name!r} is no measure that could be better or worse.{guess} There are {known}"
                )
        for name in self.checks:
            if name not in CHECKS:
                guess = did_you_mean(name, CHECKS)
                raise ValueError(
                    f"checks: {name!r} is no check.{guess} There are {', '.join(CHECKS)}"
                )
        if (self.queries is None) != (self.qrels is None):
            given, missing = ("queries", "qrels") if self.queries else ("qrels", "queries")
            raise ValueError(
                f"{given} needs {missing}: who asks what, and which documents answer it"
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
