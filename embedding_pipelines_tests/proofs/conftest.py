"""Where the real data is. It is skipped where it is absent, but never where CI is set."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedding_pipelines.environment import HOME_VARIABLE

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the checkout."""
    if not SHARED.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"{SHARED} is absent, and CI is set.")
        pytest.skip(f"{SHARED} is absent")
    return SHARED


@pytest.fixture(scope="module")
def proof_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home folder for all tests of a module: what one of them built, the next ones use."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(home))
        patch.delenv("DAGSTER_HOME", raising=False)
        yield home
