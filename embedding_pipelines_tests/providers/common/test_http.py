"""What an open model behind HTTP holds is its own: connections, keys, and what its server said."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.providers.common.http import once
from embedding_pipelines.providers.ollama import Ollama
from embedding_pipelines.providers.voyage import Voyage, VoyageModel
from embedding_pipelines_tests.providers import test_ollama, test_voyage
from embedding_pipelines_tests.providers.wire import Body, serve

TEXTS = ["one cat", "two dogs"]
DIALECT = replace(test_voyage.DIALECT, key=None)


def test_two_models_share_neither_address_nor_key_nor_client(tmp_path: Path) -> None:
    with serve(DIALECT, 256) as near, serve(DIALECT, 256) as far:
        options = [
            Voyage(model="voyage-4", dimensions=256, base_url=f"{server.url}/v1", api_key_env=name)
            for server, name in ((near, "NEAR"), (far, "FAR"))
        ]
        secrets = {"NEAR": "key of the near one", "FAR": "key of the far one"}
        first, second = (each.open(tmp_path, secrets=secrets) for each in options)
        with first, second:
            for _ in range(2):
                first.embed(TEXTS, "document")
                second.embed(TEXTS, "document")
            clients = first._client, second._client
            assert clients[0] is not clients[1]
            assert first.rate_limit.key != second.rate_limit.key
            first.close()
            assert [client.is_closed for client in clients] == [True, False]
            first.embed(TEXTS, "document")  # over a client of its own, again
            assert first._client is not clients[0]
        assert clients[1].is_closed
    keys = [{headers["authorization"] for headers in server.headers} for server in (near, far)]
    assert keys == [{"Bearer key of the near one"}, {"Bearer key of the far one"}]


def test_secrets_come_before_the_environment_and_belong_to_one_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Voyage(model="voyage-4", api_key_env="A_KEY")
    given, none = options.open(tmp_path, secrets={"A_KEY": "given"}), options.open(tmp_path)
    with pytest.raises(ConfigError, match="A_KEY is not set"):
        none.bearer  # noqa: B018
    monkeypatch.setenv("A_KEY", "of the environment")
    assert given.bearer == {"authorization": "Bearer given"}
    assert none.bearer == {"authorization": "Bearer of the environment"}


def test_threads_that_begin_together_share_one_client(tmp_path: Path) -> None:
    clients, start = [], threading.Barrier(8)

    class Slow(VoyageModel):
        @once
        def _client(self) -> Any:
            clients.append(super()._client)
            threading.Event().wait(0.05)
            return clients[-1]

    def use(_: int) -> int:
        start.wait()
        return id(model._client)

    with serve(DIALECT, 256) as server:
        options = Voyage(model="voyage-4", base_url=f"{server.url}/v1", api_key_env=None)
        model = Slow(options, tmp_path)
        with model, ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(use, range(8)))) == 1
    assert len(clients) == 1


def test_what_a_server_says_is_read_once_per_open_model() -> None:
    reads: Counter[str] = Counter()
    others = test_ollama.DIALECT.others

    def counted(path: str) -> Any:
        def answer(body: Body) -> Any:
            reads[path] += 1
            return others[path](body)

        return answer

    with serve(replace(test_ollama.DIALECT, others={path: counted(path) for path in others})) as at:
        options = Ollama(model="nomic-embed-text", base_url=at.url)
        model = at.open(options)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda text: model.embed([text], "query"), TEXTS * 4))
        assert (model.space.dimensions, model.limits.concurrent_requests) == (64, 2)
        assert reads == {"/api/tags": 1, "/api/show": 1}
        at.open(options).space  # noqa: B018
        assert reads == {"/api/tags": 2, "/api/show": 2}
