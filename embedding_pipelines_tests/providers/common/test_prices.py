"""The table of published models: each row is plausible, and what a model cannot do is said with
what it can."""

import csv
from datetime import date

import pytest

from embedding_pipelines.providers.cohere import Cohere
from embedding_pipelines.providers.common.http import MAX_PRICE
from embedding_pipelines.providers.common.prices import (
    MODELS,
    PRICES_OF,
    TABLE,
    PublishedModel,
    choose_dimensions,
    find_published,
    is_trained_for_truncation,
)
from embedding_pipelines.providers.ollama import Ollama
from embedding_pipelines.providers.openai import Openai


def test_every_row_counts_and_is_complete() -> None:
    with TABLE.open(encoding="utf-8", newline="") as lines:
        header, *rows = csv.reader(lines)
    assert len(rows) == len(MODELS)  # no model stands there twice
    assert {len(row) for row in rows} == {len(header)}


@pytest.mark.parametrize("name", MODELS)
def test_each_row_is_plausible(name: str) -> None:
    entry = MODELS[name]
    kind, model = name.split(":", 1)
    assert kind.isidentifier()
    assert model == model.strip() != ""
    assert 64 <= entry.dimensions <= 4096
    least = 64 if kind == "clip" else 256  # captions, not passages
    assert least <= entry.max_tokens <= 128_000
    price, batch_price = entry.usd_per_million, entry.usd_batch
    assert price is None or 0 <= price <= MAX_PRICE
    assert batch_price is None or (price is not None and 0 < batch_price <= price)
    assert entry.dimensions not in entry.other_dimensions
    assert all(number > 0 for number in entry.other_dimensions)
    assert entry.request_tokens is None or entry.request_tokens >= entry.max_tokens
    assert entry.retires is None or entry.retires > PRICES_OF
    if isinstance(entry.other_dimensions, range):  # `choose_dimensions` lists it as first to own
        assert (entry.other_dimensions.stop, entry.other_dimensions.step) == (entry.dimensions, 1)


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
    entry = MODELS[name]
    assert (entry.dimensions, entry.max_tokens, entry.usd_per_million) == (
        dimensions,
        max_tokens,
        usd,
    )


def test_models_of_a_family_can_stand_in_for_each_other() -> None:
    families: dict[tuple[str, str], set[tuple[object, ...]]] = {}
    for name, entry in MODELS.items():
        if entry.family is not None:
            kind = name.split(":")[0]
            same = (entry.dimensions, entry.max_tokens, tuple(entry.other_dimensions))
            families.setdefault((kind, entry.family), set()).add(same)
    assert families.keys() == {("voyage", "voyage-4")}
    assert all(len(unlike) == 1 for unlike in families.values())


def test_what_is_not_listed_has_no_price() -> None:
    assert find_published("openai", "tomorrow") is None
    assert Openai(model="tomorrow", dimensions=8).price is None
    assert MODELS["voyage:voyage-4-nano"].usd_per_million is None
    assert Openai(model="text-embedding-3-small").price == 0.02
    assert Ollama(model="nomic-embed-text").price == 0.0


def test_dimensions_are_the_models_own_or_one_it_was_trained_for() -> None:
    assert choose_dimensions("openai", "text-embedding-3-small", None) == 1536
    assert choose_dimensions("openai", "text-embedding-3-small", 256) == 256
    assert choose_dimensions("voyage", "voyage-4", 2048) == 2048
    assert choose_dimensions("cohere", "embed-english-v3.0", 1024) == 1024
    assert choose_dimensions("openai", "tomorrow", 77) == 77


def test_a_models_own_dimensions_are_not_asked_for() -> None:
    assert Cohere(model="embed-english-v3.0", dimensions=1024).requested_size is None
    assert Cohere(model="embed-v4.0").requested_size is None
    assert Cohere(model="embed-v4.0", dimensions=512).requested_size == 512
    assert Cohere(model="tomorrow", dimensions=77).requested_size == 77


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
        ("openai", "tomorrow", None, r"'tomorrow' is not in the table .* set `dimensions`"),
    ],
)
def test_what_a_model_cannot_give_is_said_with_what_it_can(
    kind: str, model: str, wanted: int | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        choose_dimensions(kind, model, wanted)


def test_a_retirement_is_a_date() -> None:
    assert MODELS["gemini:gemini-embedding-001"].retires == date(2028, 5, 14)
    assert PublishedModel(8, 8).retires is None


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
