"""Fixtures of the tests of orchestration."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from embedding_pipelines.orchestration.instance import open_instance


@pytest.fixture
def instance(home: Path, own_instance: Path) -> Iterator[dg.DagsterInstance]:
    """The instance of an empty home folder."""
    with open_instance(home) as opened:
        yield opened
