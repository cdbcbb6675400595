"""What is published about models: sizes, limits, prices, retirement. Facts only; a model not listed works as well.

Prices are USD per million input tokens as in litellm 1.109.1's table, which quotes the vendors' pages.
"""

from dataclasses import dataclass
from datetime import date

PRICES_OF = date(2026, 11, 21)


@dataclass(frozen=True)
class ModelFacts:
    """One model of a service, or a local one."""

    dimensions: int
    max_tokens: int  # per text
    usd: float | None = None  # per million tokens; 0: free, since it runs on the user's machine; None: not published
    usd_batch: float | None = None  # through the service's batch interface
    shorter: tuple[int, ...] | range = ()  # other dimensions that the model was trained to give
    call_tokens: int | None = None  # per request, where the service states it
    retires: date | None = None


MODELS: dict[str, ModelFacts] = {
    "openai:text-embedding-3-small": ModelFacts(1536, 8191, 0.02, 0.01, range(1, 1536)),
    "openai:text-embedding-3-large": ModelFacts(3072, 8191, 0.13, 0.065, range(1, 3072)),
    "openai:text-embedding-ada-002": ModelFacts(1536, 8191, 0.10, 0.05),
}


def facts_of(kind: str, model: str) -> ModelFacts | None:
    """What is known of a model, None if nothing is."""
    return MODELS.get(f"{kind}:{model}")


def chosen_dimensions(kind: str, model: str, wanted: int | None) -> int:
    """How many dimensions the vectors will have: `wanted`, or the model's own number.

    Raises ValueError if the model cannot give `wanted`, with the numbers it can, and if nobody knows its own.
    """
    facts = facts_of(kind, model)
    if facts is None:
        if wanted is None:
            raise ValueError(
                f"nothing is known of {kind} model {model!r}: say with `dimensions` how long its vectors are"
            )
        return wanted
    if wanted is None or wanted == facts.dimensions or wanted in facts.shorter:
        return wanted or facts.dimensions
    raise ValueError(f"{kind} model {model!r} cannot give {wanted} dimensions; it can give {_listed(facts)}")


def _listed(facts: ModelFacts) -> str:
    if isinstance(facts.shorter, range):
        return f"{facts.shorter.start} to {facts.dimensions}"
    return " or ".join(str(number) for number in sorted({*facts.shorter, facts.dimensions}))
