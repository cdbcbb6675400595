"""What is published about models: sizes, limits, prices, retirement. Facts only; a model not listed
works as well.

Prices are USD per million input tokens as in litellm 1.109.1's table, which quotes the vendors'
pages.
"""

import re
from dataclasses import dataclass, replace
from datetime import date

PRICES_OF = date(2026, 11, 21)


@dataclass(frozen=True)
class ModelFacts:
    """One model of a service, or a local one."""

    dimensions: int
    max_tokens: int  # per text
    usd: float | None = (
        None  # per million tokens; 0: free, since it runs on the user's machine; None: not published
    )
    usd_batch: float | None = None  # through the service's batch interface
    shorter: (
        tuple[int, ...] | range
    ) = ()  # other dimensions that the model was trained to give, mostly shorter ones
    request_tokens: int | None = None  # per request, where the service states it
    retires: date | None = None
    family: str | None = (
        None  # its models' vectors can be compared: one may index, another one query
    )


COHERE_5 = ModelFacts(2048, 128_000, 0.12, shorter=(256, 512, 768, 1024, 1536))
COHERE_3 = ModelFacts(1024, 512, 0.10)
VOYAGE_4 = ModelFacts(1024, 32_000, shorter=(256, 512, 2048), family="voyage-4")
VOYAGE = ModelFacts(1024, 32_000, shorter=(256, 512, 2048), request_tokens=120_000)

MODELS: dict[str, ModelFacts] = {
    "openai:text-embedding-3-small": ModelFacts(1536, 8191, 0.02, 0.01, range(1, 1536)),
    "openai:text-embedding-3-large": ModelFacts(3072, 8191, 0.13, 0.065, range(1, 3072)),
    "openai:text-embedding-ada-002": ModelFacts(1536, 8191, 0.10, 0.05),
    # Dimensions: docs.cohere.com/docs/cohere-embed.
    "cohere:embed-v5.0-pro": COHERE_5,
    "cohere:embed-v5.0-fast": replace(COHERE_5, usd=0.08),
    "cohere:embed-v4.0": ModelFacts(1536, 128_000, 0.12, shorter=(256, 512, 1024)),
    "cohere:embed-english-v3.0": COHERE_3,
    "cohere:embed-multilingual-v3.0": COHERE_3,
    "cohere:embed-english-light-v3.0": replace(COHERE_3, dimensions=384),
    # litellm 1.109.1 says 100 USD here, a thousand times the price of its sisters: not believed.
    "cohere:embed-multilingual-light-v3.0": replace(COHERE_3, dimensions=384),
    # Tokens per request: docs.voyageai.com/reference/embeddings-api; the family:
    # blog.voyageai.com/2026/01/15/voyage-4.
    "voyage:voyage-4-large": replace(VOYAGE_4, usd=0.12, request_tokens=120_000),
    "voyage:voyage-4": replace(VOYAGE_4, usd=0.06, request_tokens=320_000),
    "voyage:voyage-4-lite": replace(VOYAGE_4, usd=0.02, request_tokens=1_000_000),
    "voyage:voyage-4-nano": VOYAGE_4,  # open weights; no price and no limit of a request are published
    "voyage:voyage-code-4": replace(VOYAGE, usd=0.12, request_tokens=None),
    "voyage:voyage-3.5": replace(VOYAGE, usd=0.06, request_tokens=320_000),
    "voyage:voyage-3.5-lite": replace(VOYAGE, usd=0.02, request_tokens=1_000_000),
    "voyage:voyage-3-large": replace(VOYAGE, usd=0.18),
    "voyage:voyage-code-3": replace(VOYAGE, usd=0.18),
    "voyage:voyage-3": replace(VOYAGE, usd=0.06, shorter=()),
    # Any number of dimensions from 128 on: ai.google.dev/gemini-api/docs/embeddings.
    "gemini:gemini-embedding-001": ModelFacts(
        3072, 2048, 0.15, 0.075, range(128, 3072), retires=date(2028, 5, 14)
    ),
    "gemini:gemini-embedding-2": ModelFacts(3072, 8192, 0.20, 0.10, range(128, 3072)),
    "ollama:nomic-embed-text": ModelFacts(768, 8192, 0.0, shorter=(64, 128, 256, 512)),
    # Local models: their cards on huggingface.co. What counts in a run is what the model's own
    # files say.
    "hf:google-bert/bert-base-uncased": ModelFacts(768, 512, 0.0),
    "hf:sentence-transformers/all-MiniLM-L6-v2": ModelFacts(384, 256, 0.0),
    "hf:sentence-transformers/all-mpnet-base-v2": ModelFacts(768, 384, 0.0),
    "hf:BAAI/bge-small-en-v1.5": ModelFacts(384, 512, 0.0),
    "hf:BAAI/bge-base-en-v1.5": ModelFacts(768, 512, 0.0),
    "hf:BAAI/bge-large-en-v1.5": ModelFacts(1024, 512, 0.0),
    "hf:BAAI/bge-m3": ModelFacts(1024, 8_192, 0.0),
    "hf:intfloat/e5-small-v2": ModelFacts(384, 512, 0.0),
    "hf:intfloat/e5-base-v2": ModelFacts(768, 512, 0.0),
    "hf:intfloat/e5-large-v2": ModelFacts(1024, 512, 0.0),
    "hf:intfloat/multilingual-e5-base": ModelFacts(768, 512, 0.0),
    "hf:nomic-ai/nomic-embed-text-v1.5": ModelFacts(768, 8_192, 0.0),
    "hf:thenlper/gte-base": ModelFacts(768, 512, 0.0),
    "hf:mixedbread-ai/mxbai-embed-large-v1": ModelFacts(1024, 512, 0.0),
    "hf:Snowflake/snowflake-arctic-embed-l-v2.0": ModelFacts(1024, 8_192, 0.0),
    "hf:Qwen/Qwen3-Embedding-0.6B": ModelFacts(1024, 32_768, 0.0),
    "hf:google/embeddinggemma-300m": ModelFacts(768, 2_048, 0.0),
}

# Open models that were trained so that vectors may be cut to a prefix, by the last part of their
# name, as Hugging Face and ollama have them. Source: their cards on huggingface.co ("Matryoshka" or
# "MRL"; gte: "elastic").
MATRYOSHKA = re.compile(
    r".*matryoshka.*|.*-mrl-.*|nomic-embed-text-v(1\.5|2).*|modernbert-embed-(base|large)|mxbai-embed-(2d-)?large.*"
    r"|mxbai-embed-xsmall.*|snowflake-arctic-embed(2|-m-v1\.5|-[ml]-v2\.0)|qwen3-embedding.*|embeddinggemma.*"
    r"|jina-embeddings-v[345].*|jina-clip-v2|gte-multilingual-base|voyage-4-nano"
)


def is_trained_for_truncation(kind: str, model: str) -> bool:
    """Whether the first numbers of its vectors are known to stand for all of them, as those of
    Matryoshka models do."""
    facts, name = (
        facts_of(kind, model),
        model.rstrip("/").rpartition("/")[2].partition(":")[0].lower(),
    )
    return bool(facts and facts.shorter) or MATRYOSHKA.fullmatch(name) is not None


def facts_of(kind: str, model: str) -> ModelFacts | None:
    """What is known of a model, None if nothing is."""
    return MODELS.get(f"{kind}:{model}")


def published_price(kind: str, model: str) -> float | None:
    """USD per million tokens; None for a model that is not listed or has no price."""
    facts = facts_of(kind, model)
    return facts.usd if facts else None


def chosen_dimensions(kind: str, model: str, wanted: int | None) -> int:
    """How many dimensions the vectors will have: `wanted`, or the model's own number.

    Raises ValueError if the model cannot give `wanted`, with the numbers it can, and if nobody
    knows its own.
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
    raise ValueError(
        f"{kind} model {model!r} cannot give {wanted} dimensions; it can give {_listed(facts)}"
    )


def dimensions_to_ask(kind: str, model: str, wanted: int | None) -> int | None:
    """`wanted` as a request says it; None for the model's own number: Cohere's version 3 and
    Voyage's models before 3.5 know no such parameter."""
    facts = facts_of(kind, model)
    return None if facts is not None and wanted == facts.dimensions else wanted


def possible_dimensions(kind: str, model: str) -> str:
    """What a model can give, in words; empty for one that is not listed."""
    facts = facts_of(kind, model)
    return _listed(facts) if facts else ""


def _listed(facts: ModelFacts) -> str:
    if isinstance(facts.shorter, range):
        return f"{facts.shorter.start} to {facts.dimensions}"
    return " or ".join(str(number) for number in sorted({*facts.shorter, facts.dimensions}))
