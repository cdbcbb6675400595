"""Deploying to a running server: it switches under load, and nothing of it is left afterwards."""

import re
import threading
import time
from pathlib import Path

import httpx2
import pytest

from embedding_pipelines.deployments import read_deployments
from embedding_pipelines.errors import ConfigError, TargetError
from embedding_pipelines.progress import Silent
from embedding_pipelines.releases import read_releases
from embedding_pipelines.serving.targets.deploy import deploy, target_of, undeploy
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.conftest import UNMEASURED
from embedding_pipelines_tests.serving.live import wait_until
from embedding_pipelines_tests.serving.processes import serving

KEY = "a key of the tests"
PIPELINE = f"""\
source: {{kind: csv, path: 'data/*.csv', id: id, text: [title], metadata: [cat]}}
model: {{provider: hashing}}
partitions: 2
{UNMEASURED}"""
ROWS = [(f"id-{n}", f"word{n % 7} text number {n}", "c") for n in range(20)]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    home = tmp_path / "here"
    write_pipeline(home, "p", PIPELINE)
    write_csv(home, "a.csv", ROWS)
    run_steps(home, "p")
    return home


@pytest.fixture
def there(tmp_path: Path) -> Path:
    home = tmp_path / "there"
    home.mkdir()
    return home


def files(home: Path) -> set[str]:
    """What a home holds, but for the files that every server and every writer leaves."""
    paths = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}
    left = re.compile(r"cache\.sqlite|ids\.json|\.lock$")
    return {path for path in paths if not left.search(path)}


class Load:
    """Embeds one text again and again, and keeps what was answered."""

    def __init__(self, address: str) -> None:
        self.statuses: list[int] = []
        self.releases: list[str] = []
        self._address, self._ends = address, threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(3)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx2.Client(base_url=self._address, headers=headers, timeout=30) as client:
            while not self._ends.is_set():
                reply = client.post("/v1/embeddings", json={"model": "p", "input": "word3"})
                self.statuses.append(reply.status_code)
                self.releases.append(reply.headers.get("X-Embedding-Release", ""))
                time.sleep(0.005)


@pytest.mark.slow
def test_a_release_is_deployed_replaced_under_load_and_taken_back(here: Path, there: Path) -> None:
    warehouse, folder = Warehouse(here), Warehouse(here).pipeline("p")
    remote = Warehouse(there).pipeline("p")
    before = files(there)
    with serving(there, key=KEY) as address:
        deployment = deploy(warehouse, "p", address, key=KEY)
        assert deployment.is_complete
        assert deployment.resources == {"pipeline": "p", "address": address, "release": 1}
        assert read_deployments(folder) == [deployment]
        with Load(address) as load:
            wait_until(lambda: len(load.statuses) > 50, 60)
            write_csv(here, "a.csv", [*ROWS, ("new", "one more document", "c")])
            run_steps(here, "p")
            second, answers = deploy(warehouse, "p", address, key=KEY), len(load.statuses)
            wait_until(lambda: len(load.statuses) > answers + 50, 60)
        assert second.resources["release"] == 2
        assert read_releases(remote).live == 2
        assert load.statuses
        assert set(load.statuses) == {200}
        assert read_deployments(folder) == [second]
        removed = undeploy(warehouse, "p", key=KEY)
        assert [line.removeprefix(f"{address}: ").partition(",")[0] for line in removed] == [
            "release 1 of p",
            "release 2 of p",
            "folder and tables of p",
        ]
        assert read_deployments(folder) == []
        with pytest.raises(ConfigError, match="deployed to nowhere"):
            undeploy(warehouse, "p", key=KEY)
    assert files(there) == before


@pytest.mark.slow
def test_what_is_live_stays_live_if_the_bundle_does_not_reproduce(
    here: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embedding_pipelines.serving import bundle

    with serving(there, key=KEY) as address:
        deploy(Warehouse(here), "p", address, key=KEY)
        golden = bundle._embed
        monkeypatch.setattr(bundle, "_embed", lambda *given: golden(*given)[:, ::-1].copy())
        monkeypatch.setattr(bundle, "SAME_CODES", -1.0)
        with pytest.raises(TargetError, match="do not reproduce"):
            deploy(Warehouse(here), "p", address, key=KEY)
        assert read_releases(Warehouse(there).pipeline("p")).live == 1
        reply = httpx2.post(
            f"{address}/v1/embeddings",
            json={"model": "p", "input": "word3"},
            headers={"Authorization": f"Bearer {KEY}"},
        )
        assert reply.status_code == 200


@pytest.mark.slow
def test_a_release_of_the_server_s_own_is_live_again_afterwards(here: Path, there: Path) -> None:
    write_pipeline(there, "p", PIPELINE)
    write_csv(there, "a.csv", ROWS[:5])
    run_steps(there, "p")
    before = files(there)
    with serving(there, key=KEY) as address:
        deploy(Warehouse(here), "p", address, key=KEY)
        assert read_releases(Warehouse(there).pipeline("p")).live == 2
        removed = undeploy(Warehouse(here), "p", address, key=KEY)
    assert removed[-1].endswith("the switch from release 1 of p, which is live again")
    assert read_releases(Warehouse(there).pipeline("p")).live == 1
    assert files(there) == before


def test_a_wrong_key_and_a_server_that_is_none(here: Path, there: Path) -> None:
    with serving(there, key=KEY) as address, pytest.raises(TargetError, match="scope admin"):
        deploy(Warehouse(here), "p", address, key="wrong")
    assert read_deployments(Warehouse(here).pipeline("p")) == []


def test_a_server_that_does_not_answer(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(TargetError, match="does not answer"):
        deploy(Warehouse(here), "p", "http://127.0.0.1:9", key=KEY)


def test_credentials_are_kept_off_the_record(here: Path) -> None:
    with pytest.raises(ConfigError, match="holds credentials"):
        deploy(Warehouse(here), "p", "http://me:secret@127.0.0.1:9", progress=Silent())


@pytest.mark.parametrize("endpoint", ["", "ftp://x", "http://", "http://[x", "a b"])
def test_what_is_no_endpoint(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="is no endpoint"):
        target_of(endpoint)
