"""Fixtures of the tests of orchestration."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from embedding_pipelines.home import warehouse_folder
from embedding_pipelines.orchestration.instance import open_instance


@pytest.fixture(scope="session")
def empty_instance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An instance in which nothing ran yet; making its tables takes a second."""
    home = tmp_path_factory.mktemp("instance")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DAGSTER_HOME", raising=False)
        with open_instance(home) as opened:
            opened.get_runs_count()
            opened.get_latest_materialization_event(dg.AssetKey("none"))
    return warehouse_folder(home) / "dagster"


@pytest.fixture
def instance(
    home: Path, empty_instance: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """The instance of an empty home folder."""
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    shutil.copytree(empty_instance, warehouse_folder(home) / "dagster")
    with open_instance(home) as opened:
        yield opened
