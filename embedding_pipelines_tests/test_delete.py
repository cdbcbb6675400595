"""Deleting a pipeline: all of it and nothing else."""

import errno
import os
import shutil
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from embedding_pipelines.delete import delete_pipeline, plan_deletion
from embedding_pipelines.deployments import Deployment, remove_deployment, write_deployment
from embedding_pipelines.errors import BusyError, ConfigError, ReleaseError
from embedding_pipelines.releases import live_release
from embedding_pipelines.storage.pushed import Change, pushed_log
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import (
    copy_home,
    live_rows,
    run_recorded,
    run_steps,
    write_csv,
    write_pipeline,
)
from embedding_pipelines_tests.conftest import HASHING

ROWS = [(1, "red fox", "x"), (2, "blue whale", "y")]


def files_of(home: Path) -> set[str]:
    return {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def two_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pipelines `p` and `p_2`, with releases."""
    home = tmp_path_factory.mktemp("two")
    write_csv(home, "a.csv", ROWS)
    for name in ("p", "p_2"):
        write_pipeline(home, name, HASHING)
        run_steps(home, name)
    return home


@pytest.fixture
def two(home: Path, two_once: Path) -> Path:
    return copy_home(two_once, home)


def test_what_is_deployed_is_undeployed_first(two: Path) -> None:
    """Else nobody would know any more what was created there, and costs money."""
    folder, place = Warehouse(two).pipeline("p"), "http://my-server:8080"
    deployment = Deployment(
        endpoint=place,
        target="server",
        pipeline="p",
        release=1,
        space_id="x",
        deployed_at=datetime.now(UTC),
    )
    write_deployment(folder, deployment)
    before = files_of(two)
    with pytest.raises(ConfigError, match=f"undeploy p --endpoint {place}"):
        delete_pipeline(two, "p")
    assert before <= files_of(two)
    remove_deployment(folder, place)
    assert delete_pipeline(two, "p").releases == [1]


def test_a_pipeline_goes_and_its_neighbour_stays(two: Path) -> None:
    (two / "data/warehouse/exports/p-parquet").mkdir(parents=True)
    other = {name for name in files_of(two) if "p_2" in name}
    deletion = delete_pipeline(two, "p")
    assert (deletion.pipeline, deletion.releases) == ("p", [1])
    assert deletion.size_bytes > 1_000
    left = files_of(two)
    assert other <= left
    assert left - other <= {"data/a.csv", "data/warehouse/cache.sqlite"} | {
        name for name in left if "canaries" in name
    }
    assert not Warehouse(two).pipeline("p").folder.exists()
    assert len(live_rows(two, "p_2")) == 2


def test_with_its_file_kept_the_next_run_starts_anew_and_embeds_nothing(two: Path) -> None:
    delete_pipeline(two, "p", keep_file=True)
    _, texts = run_recorded(two, "p")
    assert texts == []
    assert len(live_rows(two, "p")) == 2


def test_nothing_is_deleted_while_it_runs(two: Path) -> None:
    before = files_of(two)
    with Warehouse(two).pipeline("p").lock("run"), pytest.raises(BusyError):
        delete_pipeline(two, "p")
    assert files_of(two) >= before


def test_what_is_half_gone_is_not_searched(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise OSError(f"{path} cannot be removed")

    monkeypatch.setattr("shutil.rmtree", fail)
    with pytest.raises(OSError, match="cannot be removed"):
        delete_pipeline(two, "p")
    with pytest.raises(ReleaseError, match="no release yet"):
        live_release(Warehouse(two).pipeline("p"))


def test_a_deletion_that_was_stopped_is_gone_on_with(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_at_folder(path: Path) -> None:
        if path.suffix == ".lance":
            rmtree(path)
        else:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    rmtree = shutil.rmtree
    with monkeypatch.context() as patch:
        patch.setattr("embedding_pipelines.delete.shutil.rmtree", stop_at_folder)
        with pytest.raises(OSError, match="output error"):
            delete_pipeline(two, "p")
    delete_pipeline(two, "p")
    assert not [name for name in files_of(two) if "/p" in name and "p_2" not in name]


def test_damaged_releases_do_not_keep_a_pipeline(two: Path) -> None:
    folder = Warehouse(two).pipeline("p")
    folder.releases.write_text("{")
    folder.releases_copy.write_text("{")
    assert delete_pipeline(two, "p").releases == []


@pytest.mark.parametrize("name", ["nothing", "../..", "..", "", "*", "p_2/../p"])
def test_what_is_no_pipeline_is_refused(two: Path, name: str) -> None:
    before = files_of(two)
    with pytest.raises(ConfigError):
        delete_pipeline(two, name)
    assert files_of(two) == before


def test_a_file_whose_name_is_no_name_goes_alone(two: Path) -> None:
    write_pipeline(two, "*", HASHING)
    deletion = plan_deletion(two, "*")
    assert deletion.paths == [two / "pipelines" / "*.yaml"]
    with pytest.raises(ConfigError, match="nothing to delete"):
        plan_deletion(two, "*", keep_file=True)


def test_what_was_pushed_goes_with_the_file_and_stays_with_it(tmp_path: Path) -> None:
    write_pipeline(tmp_path, "p", "input_type: text\nmodel: {provider: hashing}\n")
    log = pushed_log(Warehouse(tmp_path), "p")
    log.append([Change("a", "put", {"id": "a", "text": "a text"})])
    with suppress(ReleaseError):  # of checks: it is one document
        run_steps(tmp_path, "p")
    delete_pipeline(tmp_path, "p", keep_file=True)
    assert log.last() == 1
    deletion = delete_pipeline(tmp_path, "p")
    assert log.folder in deletion.paths
    assert not log.folder.exists()
