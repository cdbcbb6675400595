"""The published facts: each row is plausible, and what a model cannot do is said with what it
can."""

from datetime import date

import pytest

from embedding_pipelines.providers.common.http import MAX_PRICE
from embedding_pipelines.providers.common.prices import (
    MODELS,
    PRICES_OF,
    ModelFacts,
    chosen_dimensions,
    dimensions_to_ask,
    facts_of,
    is_trained_for_truncation,
    published_price,
)


@pytest.mark.parametrize("name", MODELS)
def test_each_row_is_plausible(name: str) -> None:
    facts = MODELS[name]
    kind, model = name.split(":", 1)
    assert kind.isidentifier()
    assert model == model.strip() != ""
    assert 64 <= facts.dimensions <= 4096
    assert 256 <= facts.max_tokens <= 128_000
    assert facts.usd is None or 0 <= facts.usd <= MAX_PRICE
    assert facts.usd_batch is None or (facts.usd is not None and 0 < facts.usd_batch <= facts.usd)
    assert facts.dimensions not in facts.shorter
    assert all(number > 0 for number in facts.shorter)
    assert facts.request_tokens is None or facts.request_tokens >= facts.max_tokens
    assert facts.retires is None or facts.retires > PRICES_OF
    if isinstance(facts.shorter, range):  # `chosen_dimensions` lists it as first to own
        assert (facts.shorter.stop, facts.shorter.step) == (facts.dimensions, 1)


@pytest.mark.parametrize(
    ("name", "dimensions", "max_tokens", "usd"),
    [
        ("openai:text-embedding-3-large", 3072, 8191, 0.13),
        ("openai:text-embedding-3-small", 1536, 8191, 0.02),
        ("openai:text-embedding-ada-002", 1536, 8191, 0.10),
        ("voyage:voyage-3", 1024, 32_000, 0.06),
        ("cohere:embed-english-v3.0", 1024, 512, 0.10),
        ("ollama:nomic-embed-text", 768, 8192, 0.0),
        ("hf:sentence-transformers/all-MiniLM-L6-v2", 384, 256, 0.0),
        ("hf:BAAI/bge-large-en-v1.5", 1024, 512, 0.0),
    ],
)
def test_the_best_known_models(name: str, dimensions: int, max_tokens: int, usd: float) -> None:
    facts = MODELS[name]
    assert (facts.dimensions, facts.max_tokens, facts.usd) == (dimensions, max_tokens, usd)


def test_models_of_a_family_can_stand_in_for_each_other() -> None:
    families: dict[tuple[str, str], set[tuple[object, ...]]] = {}
    for name, facts in MODELS.items():
        if facts.family is not None:
            kind = name.split(":")[0]
            same = (facts.dimensions, facts.max_tokens, tuple(facts.shorter))
            families.setdefault((kind, facts.family), set()).add(same)
    assert families.keys() == {("voyage", "voyage-4")}
    assert all(len(unlike) == 1 for unlike in families.values())


def test_what_is_not_listed_has_no_price() -> None:
    assert facts_of("openai", "tomorrow") is None
    assert published_price("openai", "tomorrow") is None
    assert published_price("voyage", "voyage-4-nano") is None
    assert published_price("ollama", "nomic-embed-text") == 0.0


def test_dimensions_are_the_models_own_or_one_it_was_trained_for() -> None:
    assert chosen_dimensions("openai", "text-embedding-3-small", None) == 1536
    assert chosen_dimensions("openai", "text-embedding-3-small", 256) == 256
    assert chosen_dimensions("voyage", "voyage-4", 2048) == 2048
    assert chosen_dimensions("cohere", "embed-english-v3.0", 1024) == 1024
    assert chosen_dimensions("openai", "tomorrow", 77) == 77


def test_a_models_own_dimensions_are_not_asked_for() -> None:
    assert dimensions_to_ask("cohere", "embed-english-v3.0", 1024) is None
    assert dimensions_to_ask("cohere", "embed-v4.0", None) is None
    assert dimensions_to_ask("cohere", "embed-v4.0", 512) == 512
    assert dimensions_to_ask("cohere", "tomorrow", 77) == 77


@pytest.mark.parametrize(
    ("kind", "model", "wanted", "words"),
    [
        (
            "openai",
            "text-embedding-3-small",
            2000,
            "cannot give 2000 dimensions; it can give 1 to 1536$",
        ),
        ("gemini", "gemini-embedding-001", 64, "can give 128 to 3072$"),
        ("voyage", "voyage-4", 300, "can give 256 or 512 or 1024 or 2048$"),
        ("openai", "text-embedding-ada-002", 256, "can give 1536$"),
        ("openai", "tomorrow", None, "'tomorrow': say with `dimensions`"),
    ],
)
def test_what_a_model_cannot_give_is_said_with_what_it_can(
    kind: str, model: str, wanted: int | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        chosen_dimensions(kind, model, wanted)


def test_a_retirement_is_a_date() -> None:
    assert MODELS["gemini:gemini-embedding-001"].retires == date(2028, 5, 14)
    assert ModelFacts(8, 8).retires is None


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("openai", "text-embedding-3-large"),
        ("gemini", "gemini-embedding-001"),
        ("voyage", "voyage-3.5"),
        ("cohere", "embed-v4.0"),
        ("hf", "nomic-ai/nomic-embed-text-v1.5"),
        ("hf", "mixedbread-ai/mxbai-embed-large-v1"),
        ("hf", "Snowflake/snowflake-arctic-embed-l-v2.0"),
        ("hf", "Qwen/Qwen3-Embedding-0.6B"),
        ("hf", "google/embeddinggemma-300m"),
        ("hf", "models/jina-embeddings-v3/"),
        ("hf", "tomaarsen/mpnet-base-nli-matryoshka"),
        ("tei", "nomic-ai/modernbert-embed-base"),
        ("ollama", "nomic-embed-text"),
        ("ollama", "qwen3-embedding:0.6b"),
    ],
)
def test_models_that_were_trained_for_it_may_be_cut(kind: str, model: str) -> None:
    assert is_trained_for_truncation(kind, model)


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("hf", "sentence-transformers/all-MiniLM-L6-v2"),
        ("hf", "nomic-ai/nomic-embed-text-v1"),
        ("hf", "Snowflake/snowflake-arctic-embed-l"),
        ("hf", "BAAI/bge-m3"),
        ("openai", "text-embedding-ada-002"),
        ("cohere", "embed-english-v3.0"),
        ("hashing", "words"),
    ],
)
def test_models_of_which_nobody_says_so_are_not_known_to_be_trained_for_it(
    kind: str, model: str
) -> None:
    assert not is_trained_for_truncation(kind, model)
