"""What is published about models: sizes, limits, prices, retirement. A model that is not in the
table works as well.

The table is `prices.csv`, one row per model. Prices are USD per million input tokens as in litellm
1.109.1's table, which quotes the vendors' pages; 0: free, on the user's machine; empty: not
published. `other_dimensions` are those that the model was trained to give beside its own, as
numbers or a range. What counts in a run of a local model is what its own files say.
"""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from types import MappingProxyType

PRICES_OF = date(2026, 11, 21)
TABLE = Path(__file__).with_suffix(".csv")


@dataclass(frozen=True)
class PublishedModel:
    """One row of the table."""

    dimensions: int
    max_tokens: int  # per text
    usd_per_million: float | None = None
    usd_batch: float | None = None  # per million tokens of batch jobs
    other_dimensions: tuple[int, ...] | range = ()
    request_tokens: int | None = None  # per request, where the service states it
    retires: date | None = None
    family: str | None = None  # vectors of its models can be compared: one may index, another query


def _parse(row: Mapping[str, str]) -> PublishedModel:
    first, _, last = row["other_dimensions"].partition("-")
    return PublishedModel(
        dimensions=int(row["dimensions"]),
        max_tokens=int(row["max_tokens"]),
        usd_per_million=float(row["usd_per_million"]) if row["usd_per_million"] else None,
        usd_batch=float(row["usd_batch"]) if row["usd_batch"] else None,
        other_dimensions=range(int(first), int(last) + 1)
        if last
        else tuple(map(int, first.split())),
        request_tokens=int(row["request_tokens"]) if row["request_tokens"] else None,
        retires=date.fromisoformat(row["retires"]) if row["retires"] else None,
        family=row["family"] or None,
    )


def read_table(file: Path = TABLE) -> dict[str, PublishedModel]:
    """The models of a table by "provider:model"."""
    with file.open(encoding="utf-8", newline="") as lines:
        return {f"{row['provider']}:{row['model']}": _parse(row) for row in csv.DictReader(lines)}


MODELS: Mapping[str, PublishedModel] = MappingProxyType(read_table())

# Open models that were trained so that vectors may be cut to a prefix, by the last part of their
# name, as Hugging Face and ollama have them. Source: their cards on huggingface.co ("Matryoshka" or
# "MRL"; gte: "elastic").
MATRYOSHKA = re.compile(
    r".*matryoshka.*|.*-mrl-.*|nomic-embed-text-v(1\.5|2).*|modernbert-embed-(base|large)"
    r"|mxbai-embed-(2d-)?large.*|mxbai-embed-xsmall.*"
    r"|snowflake-arctic-embed(2|-m-v1\.5|-[ml]-v2\.0)|qwen3-embedding.*|embeddinggemma.*|jina-embeddings-v[345].*|jina-clip-v2"
    r"|gte-multilingual-base|voyage-4-nano"
)


def published(kind: str, model: str) -> PublishedModel | None:
    """What is published about a model; None if it is not in the table."""
    return MODELS.get(f"{kind}:{model}")


def published_price(kind: str, model: str) -> float | None:
    """USD per million tokens; None for a model that is not in the table or has no price."""
    entry = published(kind, model)
    return entry.usd_per_million if entry else None


def is_trained_for_truncation(kind: str, model: str) -> bool:
    """Whether the first numbers of its vectors are known to stand for all of them, as those of
    Matryoshka models do."""
    entry = published(kind, model)
    name = model.rstrip("/").rpartition("/")[2].partition(":")[0].lower()
    return bool(entry and entry.other_dimensions) or MATRYOSHKA.fullmatch(name) is not None


def choose_dimensions(kind: str, model: str, dimensions: int | None) -> int:
    """How many dimensions the vectors have: `dimensions`, or the model's own number.

    Raises ValueError if the model cannot give `dimensions`, with the numbers it can, and if its
    own number is not published.
    """
    entry = published(kind, model)
    if entry is None:
        if dimensions is None:
            raise ValueError(
                f"nothing is published about {kind} model {model!r}: say with `dimensions` how "
                "long its vectors are"
            )
        return dimensions
    if dimensions in (None, entry.dimensions) or dimensions in entry.other_dimensions:
        return dimensions or entry.dimensions
    raise ValueError(
        f"{kind} model {model!r} cannot give {dimensions} dimensions; it can give "
        f"{possible_dimensions(kind, model)}"
    )


def dimensions_to_ask(kind: str, model: str, dimensions: int | None) -> int | None:
    """`dimensions` as a request says it; None for the model's own number: Cohere's version 3 and
    Voyage's models before 3.5 know no such parameter."""
    entry = published(kind, model)
    return None if entry is not None and dimensions == entry.dimensions else dimensions


def possible_dimensions(kind: str, model: str) -> str:
    """What a model can give, in words; empty for one that is not in the table."""
    entry = published(kind, model)
    if entry is None:
        return ""
    if isinstance(entry.other_dimensions, range):
        return f"{entry.other_dimensions.start} to {entry.dimensions}"
    return " or ".join(map(str, sorted({*entry.other_dimensions, entry.dimensions})))
