"""Fixtures of the server's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

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


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Tests that are coroutines, marked `anyio`, run in asyncio."""
    return "asyncio"
