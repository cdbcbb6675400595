"""Published figures of models: sizes, limits, prices, retirement. Models not listed work, too.

The table is `prices.csv`, one row per model. Prices are USD per million input tokens as in litellm
1.109.1's table, which quotes the vendors' pages; 0: free, on the user's machine; empty: not
published. `other_dimensions` are those that the model was trained to give beside its own, as
numbers or a range. A run of a local model reads these figures from the model's own files. `alias`
is the model's short name, `revision` the commit on the hub that it stands for.
"""

import csv
import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import ConfigDict, PlainValidator
from pydantic.dataclasses import dataclass

from embedding_pipelines.errors import did_you_mean

PRICES_OF = date(2026, 11, 21)
TABLE = Path(__file__).with_suffix(".csv")


def _parse_sizes(text: str) -> tuple[int, ...] | range:
    first, _, last = text.partition("-")
    return range(int(first), int(last) + 1) if last else tuple(map(int, first.split()))


@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class PublishedModel:
    """One row of the table."""

    dimensions: int
    max_tokens: int  # per text
    usd_per_million: float | None = None
    usd_batch: float | None = None  # per million tokens of batch jobs
    other_dimensions: Annotated[tuple[int, ...] | range, PlainValidator(_parse_sizes)] = ()
    request_tokens: int | None = None  # per request, where the service states it
    retires: date | None = None
    family: str | None = None  # its models share one space: one may index, another query


ROWS: list[dict[str, Any]] = [  # without their empty fields
    {name: value for name, value in row.items() if value}
    for row in csv.DictReader(TABLE.read_text(encoding="utf-8").splitlines())
]
MODELS: Mapping[str, PublishedModel] = MappingProxyType(
    {f"{row['provider']}:{row['model']}": PublishedModel(**row) for row in ROWS}
)

# Open models whose vectors may be cut to a prefix, by the last part of their name at Hugging Face
# and ollama. Source: their cards on huggingface.co ("Matryoshka" or "MRL"; gte: "elastic").
MATRYOSHKA = re.compile(
    r".*matryoshka.*|.*-mrl-.*|nomic-embed-text-v(1\.5|2).*|modernbert-embed-(base|large)"
    r"|mxbai-embed-(2d-)?large.*|mxbai-embed-xsmall.*"
    r"|snowflake-arctic-embed(2|-m-v1\.5|-[ml]-v2\.0)|qwen3-embedding.*|embeddinggemma.*"
    r"|jina-embeddings-v[345].*|jina-clip-v2|gte-multilingual-base|voyage-4-nano"
)


def find_published(kind: str, model: str) -> PublishedModel | None:
    """A model's row of the table; None if it has none."""
    return MODELS.get(f"{kind}:{model}")


def is_trained_for_truncation(kind: str, model: str) -> bool:
    """Whether a prefix of a vector can stand for the whole, as with Matryoshka models."""
    entry = find_published(kind, model)
    name = model.rstrip("/").rpartition("/")[2].partition(":")[0].lower()
    return bool(entry and entry.other_dimensions) or MATRYOSHKA.fullmatch(name) is not None


def choose_dimensions(kind: str, model: str, dimensions: int | None) -> int:
    """The number of dimensions of the vectors: `dimensions`, else the model's own.

    Raises ValueError if the model cannot give `dimensions`, with the numbers it can, and if its
    own number is not published.
    """
    entry = find_published(kind, model)
    if entry is None:
        if dimensions is None:
            names = [name.removeprefix(f"{kind}:") for name in MODELS if name.startswith(kind)]
            raise ValueError(
                f"{kind} model {model!r} is not in the table of published models: set `dimensions` "
                f"to the length of its vectors.{did_you_mean(model, names)}"
            )
        return dimensions
    if dimensions in (None, entry.dimensions) or dimensions in entry.other_dimensions:
        return dimensions or entry.dimensions
    raise ValueError(
        f"{kind} model {model!r} cannot give {dimensions} dimensions; it can give "
        f"{possible_dimensions(kind, model)}"
    )


def possible_dimensions(kind: str, model: str) -> str:
    """The sizes that a model can give, in words; empty for one that is not in the table."""
    entry = find_published(kind, model)
    if entry is None:
        return ""
    if isinstance(entry.other_dimensions, range):
        return f"{entry.other_dimensions.start} to {entry.dimensions}"
    return " or ".join(map(str, sorted({*entry.other_dimensions, entry.dimensions})))
