"""A home folder for the tests of one module, one after another."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from embedding_pipelines.environment import HOME_VARIABLE


@pytest.fixture(scope="module")
def proof_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home folder for all tests of a module: what one of them built, the next ones use."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(home))
        patch.delenv("DAGSTER_HOME", raising=False)
        yield home
