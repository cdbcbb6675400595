"""`aios`: the contract against a real gRPC server, every shape of reply, and what each status
means."""

import json
import math
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # broken connections are wanted here, and no news

import grpc
import numpy as np
import pytest
from pydantic import ValidationError

from embedding_pipelines.errors import (
    BadInput,
    Busy,
    ConfigError,
    InvalidReply,
    ProviderError,
    TooLarge,
    Unreachable,
)
from embedding_pipelines.providers.aios import Aios, AiosModel, message_classes
from embedding_pipelines.providers.base import faulty_rows
from embedding_pipelines.providers.hashing import Hashing
from embedding_pipelines_tests.providers.contract import check_provider

TEXTS = ["a cat", "a dog", "a bird"]
ROWS = [[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]]
HASHING = Hashing().open(Path())
CLASSES = message_classes()
Reply = Callable[[list[str], grpc.ServicerContext], Any]  # the JSON of the reply, or its text


class Block(grpc.GenericRpcHandler):
    """An AIOS server of one method, which answers as `reply` says and keeps what it was sent."""

    def __init__(self) -> None:
        self.reply: Reply = shaped
        self.packets: list[Any] = []
        self.metadata: list[dict[str, str]] = []
        self.called, self.released = threading.Event(), threading.Event()
        self.address = ""
        self.server: grpc.Server
        self.models = ExitStack()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if details.method != "/BlockInferenceService/infer":
            return None
        return grpc.unary_unary_rpc_method_handler(
            self._infer,
            request_deserializer=CLASSES["BlockInferencePacket"].FromString,
            response_serializer=CLASSES["AIOSPacket"].SerializeToString,
        )

    def _infer(self, packet: Any, context: grpc.ServicerContext) -> Any:
        self.packets.append(packet)
        self.metadata.append(dict(context.invocation_metadata()))
        self.called.set()
        said = self.reply(json.loads(packet.data)["texts"], context)
        data = said if isinstance(said, str) else json.dumps(said)
        return CLASSES["AIOSPacket"](
            session_id=packet.session_id, seq_no=packet.seq_no, data=data, ts=packet.ts
        )


def shaped(texts: list[str], context: grpc.ServicerContext) -> Any:
    return {"data": {"embeddings": HASHING.embed(texts, "document").vectors.tolist()}}


def failing(code: grpc.StatusCode, words: str, **trailing: str) -> Reply:
    def fail(texts: list[str], context: grpc.ServicerContext) -> Any:
        context.set_trailing_metadata(
            tuple((name.replace("_", "-"), value) for name, value in trailing.items())
        )
        context.abort(code, words)

    return fail


@contextmanager
def serving() -> Iterator[Block]:
    block = Block()
    block.server = grpc.server(
        futures.ThreadPoolExecutor(4), handlers=(block,), options=(("grpc.so_reuseport", 0),)
    )
    block.address = f"127.0.0.1:{block.server.add_insecure_port('127.0.0.1:0')}"
    block.server.start()
    try:
        yield block
    finally:
        block.models.close()
        block.released.set()
        block.server.stop(None).wait()


@pytest.fixture
def block() -> Iterator[Block]:
    with serving() as running:
        yield running


def model_at(block: Block, **options: Any) -> AiosModel:
    base = {"grpc_url": block.address, "model": "embedder-7", "dimensions": 2}
    return block.models.enter_context(Aios(**{**base, **options}).open(Path()))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize": False, "prompts": {"query": "Q: "}},
        {"prompts": {"document": "a passage: "}},
    ],
)
def test_aios_keeps_the_contract(block: Block, options: dict[str, Any]) -> None:
    check_provider(model_at(block, dimensions=64, **options))


def test_a_request_is_one_packet_of_all_texts(block: Block) -> None:
    block.reply = lambda *_: {"data": {"embeddings": ROWS}}
    model = model_at(
        block,
        gen_params={"truncate": False},
        selection_query={"region": "eu"},
        prompts={"query": "Ünï "},
    )
    before = time.time()
    for input_type in ("query", "document"):
        model.embed(TEXTS, input_type)
    first, second = block.packets
    assert first.block_id == "embedder-7"
    assert json.loads(first.data) == {
        "mode": "embedding",
        "gen_params": {"truncate": False},
        "texts": ["Ünï a cat", "Ünï a dog", "Ünï a bird"],
    }
    assert json.loads(first.query_parameters) == {"selection_query": {"region": "eu"}}
    assert json.loads(second.data)["texts"] == TEXTS
    assert first.session_id == second.session_id != ""
    assert second.seq_no > first.seq_no > 0
    assert before <= first.ts <= second.ts <= time.time()
    model_at(block).embed(TEXTS, "document")
    assert block.packets[2].query_parameters == ""
    assert "authorization" not in block.metadata[2]


def test_the_bytes_on_the_wire_are_those_of_the_published_numbering() -> None:
    packet = CLASSES["BlockInferencePacket"](
        block_id="b", session_id="s", seq_no=1, data="d", query_parameters="q"
    )
    assert packet.SerializeToString() == b"\x0a\x01b\x1a\x01s\x20\x01\x32\x01d\x3a\x01q"
    assert (
        CLASSES["AIOSPacket"](session_id="s", seq_no=1, data="d").SerializeToString()
        == b"\x0a\x01s\x10\x01\x22\x01d"
    )
    with_file = CLASSES["AIOSPacket"](files=[{"metadata": "m", "file_data": b"f"}])
    assert with_file.SerializeToString() == b"\x3a\x06\x0a\x01m\x12\x01f"


def entries(*indices: int | None) -> list[dict[str, Any]]:
    return [
        {"embedding": ROWS[at]} if index is None else {"index": index, "embedding": ROWS[index]}
        for at, index in enumerate(indices)
    ]


@pytest.mark.parametrize(
    "reply",
    [
        {"data": {"embeddings": ROWS}},
        {"data": {"embedding": ROWS}},
        {"data": {"data": entries(None, None, None)}},
        {"data": {"data": entries(2, 0, 1)}},
        {"data": {"reply": {"embeddings": ROWS}}},
        {"embeddings": ROWS},
        {"data": entries(1, 2, 0)},
        {"reply": {"embeddings": ROWS}, "error": None},
        {"success": True, "data": {"error": None, "embeddings": ROWS}},
        {"data": ROWS},
    ],
)
def test_vectors_are_read_wherever_a_block_puts_them(block: Block, reply: Any) -> None:
    block.reply = lambda *_: reply
    expected = np.array([[0.6, 0.8], [0, 1], [1, 0]], np.float32)
    np.testing.assert_allclose(
        model_at(block).embed(TEXTS, "document").vectors, expected, atol=1e-7
    )
    np.testing.assert_array_equal(
        model_at(block, normalize=False).embed(TEXTS, "document").vectors,
        np.array(ROWS, np.float32),
    )


@pytest.mark.parametrize("reply", [{"data": {"embedding": [3, 4]}}, {"embedding": [[3, 4]]}])
def test_one_vector_needs_no_list_around_it(block: Block, reply: Any) -> None:
    block.reply = lambda *_: reply
    np.testing.assert_allclose(
        model_at(block).embed(["a cat"], "query").vectors, [[0.6, 0.8]], atol=1e-7
    )


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ({"data": {"embeddings": ROWS[:2]}}, "2 vectors for 3 texts"),
        ({"data": {"embedding": ROWS[0]}}, "1 vector for 3 texts"),
        ({"data": {"data": entries(None, None)}}, "2 vectors for 3 texts"),
        (
            {"data": {"data": [*entries(0), {"index": 3, "embedding": ROWS[0]}]}},
            "impossible index 3 for 3 texts",
        ),
        ({"data": {"data": [*entries(0), *entries(0)]}}, "impossible index 0 for 3 texts"),
        (
            {"data": {"data": [*entries(0), {"index": "1", "embedding": ROWS[0]}]}},
            "impossible index '1'",
        ),
        ({"data": {"embeddings": ["x", "y", "z"]}}, "not a list of numbers"),
        ({"data": {"embeddings": [["x", "y"]] * 3}}, "not a list of numbers"),
        ({"data": {"embeddings": [[10**400, 1]] * 3}}, "int too large"),
        ({"data": {"embeddings": [[1.0], [1.0, 2.0], [1.0]]}}, "of different lengths"),
        ({"data": {"error": {"message": "no GPU left"}}}, "with an error: no GPU left"),
        ({"error": "no GPU left", "embeddings": ROWS}, "with an error: no GPU left"),
        ({"message": "no such mode"}, "without vectors: no such mode"),
        ({"data": None}, "without vectors"),
        ([], "0 vectors for 3 texts"),
        (5, "without vectors: 5"),
        ("", "without JSON"),
        ("<html>Bad gateway</html>", "without JSON: <html>Bad gateway</html>"),
    ],
)
def test_a_reply_that_is_none_is_a_fault_on_the_way(block: Block, reply: Any, says: str) -> None:
    block.reply = lambda *_: reply
    with pytest.raises(Unreachable, match=f"aios at {block.address} (answered|returned).*{says}"):
        model_at(block).embed(TEXTS, "document")


def test_vectors_whose_index_is_wrong_are_an_invalid_reply(block: Block) -> None:
    block.reply = lambda *_: {"data": {"data": [*entries(0), *entries(0)]}}
    with pytest.raises(InvalidReply):
        model_at(block).embed(TEXTS, "document")


def test_an_invalid_row_is_left_to_who_checks(block: Block) -> None:
    rows = [[1.0, 0.0], [math.nan, 1.0], [0.0, 0.0]]
    block.reply = lambda *_: {"data": {"embeddings": rows}}
    model = model_at(block)
    found = faulty_rows(model.embed(TEXTS, "document").vectors, TEXTS, model.space)
    assert found == {1: "no vector, NaN or infinity", 2: "a zero vector"}


def test_a_text_that_was_left_out_is_a_row_of_nan(block: Block) -> None:
    block.reply = lambda *_: {"data": {"data": entries(2, 0)}}
    found = model_at(block, normalize=False).embed(TEXTS, "document").vectors
    np.testing.assert_array_equal(found, [ROWS[0], [np.nan, np.nan], ROWS[2]])


def test_other_dimensions_than_declared_end_the_run(block: Block) -> None:
    block.reply = lambda *_: {"data": {"embeddings": ROWS}}
    with pytest.raises(
        ProviderError, match=r"2 dimensions, not 768\. Set dimensions to 2"
    ) as caught:
        model_at(block, model="", dimensions=768).embed(TEXTS, "document")
    assert type(caught.value) is ProviderError


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        ("INVALID_ARGUMENT", BadInput, "answered INVALID_ARGUMENT: so it is."),
        ("RESOURCE_EXHAUSTED", Busy, "answered RESOURCE_EXHAUSTED"),
        ("UNAVAILABLE", Unreachable, "so it is."),
        ("ABORTED", Unreachable, "so it is."),
        ("INTERNAL", Unreachable, "so it is."),
        ("UNKNOWN", Unreachable, "so it is."),
        ("CANCELLED", Unreachable, "so it is."),
        ("UNAUTHENTICATED", ProviderError, "Check api_key_env, which is not set"),
        ("PERMISSION_DENIED", ProviderError, "Check api_key_env"),
        ("NOT_FOUND", ProviderError, "Check model ('embedder-7') and selection_query"),
        ("UNIMPLEMENTED", ProviderError, "check grpc_url"),
    ],
)
def test_what_a_status_means(block: Block, code: str, kind: type[ProviderError], says: str) -> None:
    block.reply = failing(grpc.StatusCode[code], "so it is")
    with pytest.raises(ProviderError) as caught:
        model_at(block).embed(TEXTS, "document")
    assert type(caught.value) is kind
    assert says in str(caught.value)
    assert block.address in str(caught.value)


def test_flow_control_says_when_to_come_back_and_size_is_no_flow_control(block: Block) -> None:
    block.reply = failing(grpc.StatusCode.RESOURCE_EXHAUSTED, "quota", retry_after="2.5")
    with pytest.raises(Busy) as caught:
        model_at(block).embed(TEXTS, "document")
    assert caught.value.retry_after_seconds == 2.5
    block.reply = shaped
    with pytest.raises(TooLarge, match="larger than max"):
        model_at(block).embed(["x" * 5_000_000], "document")


def test_an_exception_in_the_block_is_a_fault_of_the_service(block: Block) -> None:
    def fail(*_: Any) -> Any:
        raise KeyError("weights")

    block.reply = fail
    with pytest.raises(Unreachable, match=r"answered UNKNOWN: .*weights"):
        model_at(block).embed(TEXTS, "document")


def test_a_block_that_does_not_answer_in_time_is_left(block: Block) -> None:
    block.reply = lambda *_: block.released.wait(60)
    started = time.monotonic()
    with pytest.raises(Unreachable, match=r"did not answer within 0\.2 s"):
        model_at(block, timeout_seconds=0.2).embed(TEXTS, "document")
    assert time.monotonic() - started < 30


def test_a_server_that_is_gone_or_goes_while_the_call_is_out_is_unreachable(block: Block) -> None:
    model = model_at(block)
    block.reply = lambda *_: block.released.wait(10)
    with futures.ThreadPoolExecutor(1) as pool:
        call = pool.submit(model.embed, TEXTS, "document")
        assert block.called.wait(5)
        block.server.stop(0)
        with pytest.raises(Unreachable, match=f"aios at {block.address} answered"):
            call.result(5)
    block.released.set()
    block.server.stop(0).wait()
    with pytest.raises(Unreachable, match="answered UNAVAILABLE"):
        model.embed(TEXTS, "document")


class Tunnel:
    """A way to a server that can be cut in the middle of a call."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._open, args=((host, int(port)),))]
        self._threads[0].start()

    def _open(self, target: tuple[str, int]) -> None:
        near, _ = self._listener.accept()
        far = socket.create_connection(target)
        self._ends = [near, far]
        self._threads += [
            threading.Thread(target=self._carry, args=ends) for ends in ((near, far), (far, near))
        ]
        for thread in self._threads[1:]:
            thread.start()

    def _carry(self, start: socket.socket, end: socket.socket) -> None:
        with suppress(OSError):
            while sent := start.recv(65_536):
                end.sendall(sent)

    def cut(self) -> None:
        self._listener.close()
        for end in self._ends:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with suppress(OSError):
                end.shutdown(socket.SHUT_RD)
            end.close()
        for thread in self._threads:
            thread.join()


def test_a_connection_that_breaks_in_the_middle_of_a_call_is_a_fault_on_the_way(
    block: Block,
) -> None:
    tunnel = Tunnel(block.address)
    block.reply = lambda *_: block.released.wait(10)
    with futures.ThreadPoolExecutor(1) as pool:
        call = pool.submit(model_at(block, grpc_url=tunnel.address).embed, TEXTS, "document")
        assert block.called.wait(5)
        tunnel.cut()
        with pytest.raises(Unreachable, match="answered UNAVAILABLE"):
            call.result(5)


def test_a_channel_belongs_to_one_model_and_is_closed_with_it(block: Block) -> None:
    first, second = model_at(block, dimensions=64), model_at(block, dimensions=64, tls=True)
    channel = first._channel
    assert first.embed(TEXTS, "document").vectors.shape == (3, 64)
    assert first._channel is channel is not second._channel
    first.close()
    first.close()
    with pytest.raises(ValueError, match="closed channel"):
        channel.unary_unary("/BlockInferenceService/infer")(b"")
    assert first.embed(TEXTS, "document").vectors.shape == (3, 64)  # over a channel of its own


def test_a_target_may_be_a_name(block: Block) -> None:
    model = model_at(
        block, grpc_url=f"dns:///localhost:{block.address.rpartition(':')[2]}", dimensions=64
    )
    assert model.embed(TEXTS, "document").vectors.shape == (3, 64)


def test_a_plain_server_does_not_answer_where_tls_is_asked_for(block: Block) -> None:
    with pytest.raises(Unreachable, match="answered UNAVAILABLE"):
        model_at(block, tls=True).embed(TEXTS, "document")
    assert block.packets == []


def test_the_space_holds_all_that_picks_and_changes_the_block(block: Block) -> None:
    options = [
        {},
        {"model": "other"},
        {"selection_query": {"tier": "a"}},
        {"gen_params": {"pooling": "cls"}},
    ]
    more = [
        {"dimensions": 3},
        {"normalize": False},
        {"prompts": {"query": "Q: "}},
        {"max_tokens": 256},
        {"model": ""},
    ]
    assert len({model_at(block, **each).space.id for each in options + more}) == len(options + more)
    assert model_at(block, model="").space.model == block.address
    assert model_at(block, concurrent_requests=1, tls=True).space.id == model_at(block).space.id
    assert block.packets == []  # it took no request
    assert model_at(block, prompts={"document": "one two "}).limits.max_tokens == 512 - 2 - 2


def test_the_key_is_sent_and_shown_to_nobody(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOS_KEY", "sk-secret")
    model = model_at(block, api_key_env="AIOS_KEY", dimensions=64)
    model.embed(TEXTS, "document")
    assert block.metadata[0]["authorization"] == "Bearer sk-secret"
    texts = [
        repr(model.options),
        model.options.model_dump_json(),
        model.space.model_dump_json(),
        model.rate_limit.key,
    ]
    for reply in (
        failing(grpc.StatusCode.UNAUTHENTICATED, "no such key: sk-secret"),
        failing(grpc.StatusCode.UNAUTHENTICATED, "x" * 295 + "sk-secret"),
        lambda *_: {"error": "no such key: sk-secret"},
        lambda *_: {"nothing": "sk-secret"},
        lambda *_: "sk-secret",
    ):
        block.reply = reply
        with pytest.raises(ProviderError) as caught:
            model.embed(TEXTS, "document")
        assert caught.value.__cause__ is None
        texts.append(str(caught.value))
    assert not any("sk-" in text for text in texts)
    assert "Check the key in AIOS_KEY" in texts[4]
    monkeypatch.delenv("AIOS_KEY")
    with pytest.raises(ConfigError, match="the environment variable AIOS_KEY is not set"):
        model.embed(TEXTS, "document")


@pytest.mark.parametrize("key", ["sk-sec\nret", "sk-secret\u2019"])
def test_a_key_that_cannot_be_one_is_an_error_that_does_not_show_it(
    block: Block, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOS_KEY", key)
    with pytest.raises(
        ConfigError, match="AIOS_KEY holds line breaks or characters that no API key has"
    ) as caught:
        model_at(block, api_key_env="AIOS_KEY").embed(TEXTS, "document")
    assert "sk" not in str(caught.value)
    assert block.packets == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "Field required"),
        (
            {"grpc_url": "http://localhost:50052"},
            "is not a target of gRPC; write e.g. localhost:50052",
        ),
        ({"grpc_url": "localhost"}, "is not a target of gRPC"),
        ({"grpc_url": "me:pw@localhost:50052"}, "a target holds no password"),
        ({"grpc_url": "localhost:50052", "dimensions": 0}, "greater than or equal to 1"),
        ({"grpc_url": "localhost:50052", "base_url": "http://x"}, "Extra inputs are not permitted"),
    ],
)
def test_a_wrong_option_is_an_error(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Aios(**options)
