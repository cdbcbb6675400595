"""A request that would wait for too long is refused at the door, and no other."""

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from embedding_pipelines.serving import door
from embedding_pipelines.serving.server import Server
from embedding_pipelines.serving.wire import TIMEOUT_HEADER, TooManyRequests
from embedding_pipelines_tests.serving.live import live

BODY = json.dumps({"input": "a fox", "input_type": "query"}).encode()


def request(body: bytes = BODY, *, version: str = "1.1", lengths: int = 1, more: str = "") -> bytes:
    length = f"Content-Length: {len(body)}\r\n" * lengths
    head = f"POST /v1/embeddings HTTP/{version}\r\nHost: x\r\nContent-Type: application/json\r\n"
    return (head + length + more + "\r\n").encode() + body


class Peer:
    """A connection that says what it wants, byte by byte."""

    def __init__(self, address: str) -> None:
        host, port = address.removeprefix("http://").split(":")
        self._socket = socket.create_connection((host, int(port)), timeout=30)
        self._file = self._socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def reply(self) -> tuple[int, dict[str, str], bytes]:
        status = int(self._file.readline().split()[1])
        lines = iter(self._file.readline, b"\r\n")
        headers = dict(line.decode().strip().lower().split(": ", 1) for line in lines)
        return status, headers, self._file.read(int(headers.get("content-length", 0)))

    @property
    def is_at_end(self) -> bool:
        return self._file.read(1) == b""

    def close(self) -> None:
        self._file.close()
        self._socket.close()


class Admission:
    """Lets in who does not give a second, where it is busy."""

    def __init__(self) -> None:
        self.is_busy, self.looks = False, 0

    def __call__(self, server: Server, seconds_left: float) -> None:
        self.looks += 1
        if self.is_busy and seconds_left > 1:
            raise TooManyRequests("later", retry_after_seconds=12.0)


@pytest.fixture(scope="module")
def place(built_home: Path) -> Iterator[tuple[str, Server]]:
    with live(built_home) as (address, server, _):
        yield address, server


@pytest.fixture
def peer(place: tuple[str, Server]) -> Iterator[Peer]:
    peer = Peer(place[0])
    yield peer
    peer.close()


@pytest.fixture
def admission(monkeypatch: pytest.MonkeyPatch) -> Admission:
    admission = Admission()
    monkeypatch.setattr(Server, "admit", lambda *given: admission(*given))
    return admission


def test_a_refusal_says_when_to_come_again_and_leaves_the_connection_as_it_was(
    peer: Peer, admission: Admission, place: tuple[str, Server]
) -> None:
    def refusals() -> list[float]:
        labels = {"path": "/v1/embeddings", "status": "429"}
        names = ("requests_total", "request_seconds")
        return [place[1].metrics.value(name, **labels) for name in names]

    admission.is_busy, before = True, refusals()
    for _ in range(2):
        peer.send(request(b'{"input": "no JSON'))
        status, headers, body = peer.reply()
        assert (status, headers["retry-after"], headers["retry-after-ms"]) == (429, "12", "12000")
        assert headers["content-type"] == "application/json"
        assert json.loads(body) == {"error": "later"}
    assert refusals() == [each + 2 for each in before]
    peer.send(request(more=f"{TIMEOUT_HEADER}: 0.5\r\n"))  # the time that a caller has is looked at
    assert peer.reply()[0] in (200, 504)
    admission.is_busy = False
    peer.send(request())
    assert peer.reply()[0] == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"input": ["a fox"]}, 429),
        ({"input": ['a "fox" \\\\'], "model": "things"}, 429),
        ({"model": "things", "input": "a fox"}, 429),
        ({"input": ["a fox", "a whale"]}, 200),
        ({"input": []}, 400),
        ({"user": '"input": "x"', "input": ["a fox", "a whale"]}, 200),
        ({"query": "fox"}, 400),
    ],
)
def test_a_single_text_is_refused_and_nothing_that_may_wait_elsewhere(
    peer: Peer, admission: Admission, body: dict[str, object], status: int
) -> None:
    """Several texts are bulk; and of a container's requests some are searches, or texts to rank."""
    admission.is_busy = True
    peer.send(request(json.dumps(body).encode()))
    assert peer.reply()[0] == status


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once the door has looked at something."""
    looked, refuses = threading.Event(), door.Door._refuses

    def look(self: door.Door, data: bytes) -> bool:
        is_refused = refuses(self, data)
        looked.set()
        return is_refused

    monkeypatch.setattr(door.Door, "_refuses", look)
    return looked


def test_a_body_that_is_not_here_goes_the_usual_way(
    peer: Peer, admission: Admission, looked: threading.Event
) -> None:
    """Nobody knows yet what it asks for."""
    admission.is_busy = True
    peer.send(request()[: -len(BODY)])
    assert looked.wait(30)
    peer.send(BODY)
    assert peer.reply()[0] == 200
    assert admission.looks == 0


def test_a_body_that_looks_like_a_request_is_none(
    peer: Peer, admission: Admission, looked: threading.Event
) -> None:
    admission.is_busy, body = True, request()
    peer.send(request(body)[: -len(body)])
    assert looked.wait(30)
    peer.send(body)
    status, _, reply = peer.reply()
    assert (status, "no JSON" in json.loads(reply)["error"]) == (400, True)
    assert admission.looks == 0


@pytest.mark.parametrize(
    "data",
    [
        request(lengths=2),
        request(version="1.0"),
        request(more="Transfer-Encoding: chunked\r\n"),
        request(more="Connection: close\r\n"),
        request() + request(),
        request().replace(b"\r\nHost", b"?a=b\r\nHost", 1).replace(b" HTTP/1.1?a=b", b"?a=b HTTP/1.1"),
        request().replace(b"/v1/embeddings", b"/v1/models"),
        request(more="Connection: keep-alive, close\r\n"),
        request(more="Expect: 100-continue\r\n"),
    ],
    ids=["lengths", "old", "chunks", "close", "two", "query", "other", "closes", "expect"],
)  # fmt: skip
def test_what_is_not_plain_goes_the_usual_way(
    peer: Peer, admission: Admission, data: bytes
) -> None:
    admission.is_busy = True
    peer.send(data)
    assert peer.reply()[0] in (100, 200, 400, 405)


@pytest.mark.parametrize(
    "more",
    [
        "Content-Length:\t3\r\n",
        "Content-Length: +3\r\n",
        "Content-Length : 3\r\n",
        "X: a\nTransfer-Encoding: chunked\r\n",
        "X: a\rTransfer-Encoding: chunked\r\n",
        "X: a\r\n Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        "X: a\0b\r\n",
    ],
)
def test_a_head_that_another_server_might_read_in_another_way_is_for_the_parser(
    peer: Peer, admission: Admission, more: str
) -> None:
    """Whoever stands in front could see the end of the body elsewhere, and what follows as a
    request of somebody else's."""
    admission.is_busy = True
    peer.send(request(more=more))
    assert peer.reply()[0] == 400


def test_a_head_has_to_come_in_time_and_an_answer_need_not(
    place: tuple[str, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "HEAD_SECONDS", 0.3)
    never, slow, used = Peer(place[0]), Peer(place[0]), Peer(place[0])
    slow.send(request()[:20])
    used.send(request())
    assert used.reply()[0] == 200
    used.send(b"POST /v1")
    for peer in (never, slow, used):
        assert peer.is_at_end
        peer.close()


def leave(connection: socket.socket) -> None:
    connection.close()


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def close_half(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_WR)


def say_more(connection: socket.socket) -> None:
    connection.sendall(b"GET / HTTP/1.1")


def say_more_and_leave(connection: socket.socket) -> None:
    say_more(connection)
    leave(connection)


def wait(connection: socket.socket) -> None:
    pass


@pytest.mark.skipif(door.HUNG_UP is None, reason="this system's kernel does not tell")
@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize(
    ("act", "is_open"),
    [
        (wait, True),
        (say_more, True),
        (say_more_and_leave, False),
        (close_half, False),
        (leave, False),
        (reset, False),
    ],
)
def test_who_has_left_is_told_before_the_event_loop_learns_of_it(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
    act: Callable[[socket.socket], None],
    is_open: bool,
) -> None:
    async def look() -> None:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            peer = socket.create_connection(listening.getsockname())
            accepted, _ = listening.accept()
        accepted.setblocking(False)
        transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, accepted)
        assert door.is_open(transport)
        act(peer)
        assert door.is_open(transport) is is_open
        assert door.is_open(transport) is is_open  # what it saw is still there for the event loop
        transport.abort()
        assert not door.is_open(transport)
        peer.close()
        await asyncio.sleep(0.01)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(look())
