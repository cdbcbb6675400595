"""Fixtures of the server's tests."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from embedding_pipelines.inference.cross_encoder import Pair
from embedding_pipelines.serving.lanes import Budget, Computed
from embedding_pipelines.serving.models import ServedReranker
from embedding_pipelines_tests.serving.homes import KEY, build, client_of


@pytest.fixture(scope="session")
def built_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the released pipeline `things` on `hashing`; nobody changes it."""
    return build(tmp_path_factory.mktemp("served"))


@pytest.fixture
def client(built_home: Path) -> Iterator[TestClient]:
    """A client with the right key."""
    with client_of(built_home, KEY) as client:
        yield client


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cross-encoders of any name score a text by its length, and load nothing."""

    def compute(_: ServedReranker, items: Sequence[Pair], *given: object) -> Computed:
        return Computed(np.array([len(text) for _, text in items], np.float32))

    monkeypatch.setattr(ServedReranker, "_warm", lambda _: (Budget(100, 100), 0, 0.0))
    monkeypatch.setattr(ServedReranker, "_count", lambda _, pairs, too_long: [1] * len(pairs))
    monkeypatch.setattr(ServedReranker, "_compute", compute)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Tests that are coroutines, marked `anyio`, run in asyncio."""
    return "asyncio"
