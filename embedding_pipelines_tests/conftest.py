"""Fixtures that every test may use."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from embedding_pipelines.environment import HOME_VARIABLE
from embedding_pipelines_tests.buckets import Proxy, TestBucket, new_bucket, proxy_to, serve_s3

settings.register_profile("shared", deadline=None)  # machines are shared: a pause is no failure
settings.load_profile("shared")

PLAIN = """\
source: {kind: csv, path: 'data/*.csv', id: id, text: [title], metadata: [cat]}
model: {provider: hashing}
partitions: 4
"""
# A search each; and files may lose as much as a test takes away.
HASHING = f"{PLAIN}evaluation: {{known_items: 8, may_shrink: 1}}\n"
# Nobody is asked for anything but the chunks' vectors.
UNMEASURED = """\
evaluation:
  known_items: 0
  may_shrink: 1
  checks: {provider_is_unchanged: off, vectors_belong_to_their_texts: off, input_types_differ: off}
"""


@pytest.fixture(scope="session", autouse=True)
def _own_pace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The request rates of services are kept in a folder of the tests' own, by subprocesses
    too."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True)
def _heard() -> None:
    """Libraries that configure logging silence other loggers: what is said here is heard whatever
    ran before."""
    logging.disable(logging.NOTSET)
    logging.root.setLevel(logging.WARNING)
    for name, logger in logging.root.manager.loggerDict.items():
        if name.partition(".")[0] == "embedding_pipelines" and isinstance(logger, logging.Logger):
            logger.disabled, logger.propagate = False, True
            logger.setLevel(logging.NOTSET)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder that EMBEDDING_PIPELINES_HOME names."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def s3_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3 server."""
    with serve_s3(tmp_path_factory.mktemp("s3") / "log") as address:
        yield address


@pytest.fixture
def bucket(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> TestBucket:
    """An empty bucket on it, which the environment says how to reach."""
    return new_bucket(s3_address, monkeypatch)


@pytest.fixture
def proxy(bucket: TestBucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy on the way to the bucket's server."""
    with proxy_to(bucket.address) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        yield proxy
