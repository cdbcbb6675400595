"""Fixtures that every test may use."""

import functools
import logging
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import alembic.script
import pytest
import sqlalchemy
from hypothesis import HealthCheck, settings

from embedding_pipelines import pool
from embedding_pipelines.environment import HOME_VARIABLE, instance_folder
from embedding_pipelines_tests.buckets import Proxy, TestBucket, new_bucket, proxy_to, serve_s3

# Machines are shared: a pause is no failure.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")

# A process that a test starts loads this package compiled, not compiles it, whatever the
# environment says.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


# No test cuts the power: what is sure to be on the disk is told by the calls
# (embedding_pipelines_tests/faults/power_cut.py), and waiting for the disk shows nothing.
os.fsync = lambda file: None


def _keep_engines() -> None:
    """Dagster makes an SQLAlchemy engine for every event and compiles its statements for it, and
    reads its migrations whenever a database is opened: half of what a small run costs. Here both
    are kept; connections are opened and closed as ever. To be called before Dagster is imported.
    """
    create = sqlalchemy.create_engine

    @functools.lru_cache(maxsize=32)
    def kept(url: str, timeout_seconds: int) -> sqlalchemy.Engine:
        arguments = {"timeout": timeout_seconds}
        return create(url, poolclass=sqlalchemy.NullPool, connect_args=arguments)

    def create_engine(url: Any, **options: Any) -> sqlalchemy.Engine:
        arguments = options.get("connect_args", {"timeout": 5})
        dagsters = {"poolclass": sqlalchemy.NullPool, "connect_args": arguments}
        is_plain = {"connect_args": arguments} | options == dagsters
        if not is_plain or arguments.keys() != {"timeout"} or "sqlite:///" not in str(url):
            return create(url, **options)
        return kept(url, arguments["timeout"])

    scripts = alembic.script.ScriptDirectory
    sqlalchemy.create_engine = create_engine
    scripts.from_config = staticmethod(functools.lru_cache(scripts.from_config))  # type: ignore


_keep_engines()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--at-length",
        action="store_true",
        help="as many runs, kills and random acts as the README's figures are of",
    )


@pytest.fixture(scope="session")
def at_length(pytestconfig: pytest.Config) -> bool:
    """Whether tests that repeat something do it often; a few times are enough for every change."""
    return bool(pytestconfig.getoption("at_length"))


def pytest_configure(config: pytest.Config) -> None:
    """Files side by side are not begun by the number of their tests: the dearest have few."""
    config.option.loadscopereorder = False


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A run of one mark's tests imports no file that does not name the mark."""
    mark = config.option.markexpr
    if collection_path.suffix != ".py" or mark not in ("alone", "browser", "slow"):
        return None
    return f"pytest.mark.{mark}" not in collection_path.read_text(encoding="utf-8") or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with proofs come first, so that no process is alone with one in the end."""
    proofs = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in proofs)


@pytest.fixture
def decoded_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool's tasks are done in this process: to start those of its own takes longer than the rest
    of a small test. What would go to and fro is pickled nevertheless."""

    def submit(_: pool.Pool, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        reply = pool._do(pickle.dumps((function, arguments)))
        is_result, value = pickle.loads(reply)  # noqa: S301  # of this process
        if is_result:
            future.set_result(value)
        else:
            future.set_exception(value)
        return future

    monkeypatch.setattr(pool.Pool, "submit", submit)


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


@pytest.fixture(scope="session")
def empty_instance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Dagster instance in which nothing ran yet."""
    import dagster as dg

    from embedding_pipelines.orchestration.instance import open_instance

    home = tmp_path_factory.mktemp("instance")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DAGSTER_HOME", raising=False)
        with open_instance(home) as opened:
            opened.get_runs_count()
            opened.get_latest_materialization_event(dg.AssetKey("none"))
        return instance_folder(home)


@pytest.fixture
def own_instance(home: Path, empty_instance: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home's own Dagster instance, as a copy: making its tables takes a second."""
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return shutil.copytree(empty_instance, instance_folder(home))
