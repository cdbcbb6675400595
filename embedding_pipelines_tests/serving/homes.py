"""A home folder with released pipelines, and a client of the application over it."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastapi.testclient import TestClient

from embedding_pipelines.serving.api import create_app
from embedding_pipelines.serving.auth import Keys
from embedding_pipelines.serving.server import Server
from embedding_pipelines_tests.chain import run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.conftest import HASHING

KEY = "a key of the tests"


ROWS: Sequence[Sequence[object]] = ((1, "red fox", "animal"), (2, "blue whale", "animal"))


def build(
    home: Path,
    text: str = HASHING,
    rows: Sequence[Sequence[object]] = ROWS,
    name: str = "things",
) -> Path:
    """A home with one released pipeline."""
    write_pipeline(home, name, text)
    write_csv(home, "a.csv", rows)
    run_steps(home, name)
    return home


@contextlib.contextmanager
def client_of(home: Path, key: str | None = None, reranker: str = "") -> Iterator[TestClient]:
    """A client that sends `key`, and which the server asks for it."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with TestClient(create_app(Server(home, Keys(key), reranker)), headers=headers) as client:
        yield client


def finish_writing(client: TestClient) -> None:
    """Wait until the vectors of all answers so far are in the cache."""
    server: Server = client.app.state.server  # type: ignore[attr-defined]
    assert client.portal is not None
    for model in server.models:
        client.portal.call(model.finish_keeping)
