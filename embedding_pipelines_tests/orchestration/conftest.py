"""Fixtures of the tests of orchestration."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from embedding_pipelines.environment import HOME_VARIABLE, instance_folder
from embedding_pipelines.orchestration.instance import open_instance
from embedding_pipelines.steps.documents import write_documents
from embedding_pipelines_tests.chain import copy_home, run_of
from embedding_pipelines_tests.orchestration.support import notes, run


@pytest.fixture
def instance(home: Path, own_instance: Path) -> Iterator[dg.DagsterInstance]:
    """The instance of an empty home folder."""
    with open_instance(home) as opened:
        yield opened


@pytest.fixture(scope="session")
def ran_once(tmp_path_factory: pytest.TempPathFactory, empty_instance: Path) -> Path:
    """A home whose pipeline `notes` has been run once."""
    home = tmp_path_factory.mktemp("ran")
    shutil.copytree(empty_instance, instance_folder(home))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(home))
        patch.delenv("DAGSTER_HOME", raising=False)
        with open_instance(home) as opened:
            assert run(notes(home), opened).success
    return home


@pytest.fixture
def ran(
    ran_once: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """The instance of a copy of it, of whose files the pipeline knows that they are as they were."""
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    write_documents(run_of(copy_home(ran_once, home), "notes"))
    with open_instance(home) as opened:
        yield opened
