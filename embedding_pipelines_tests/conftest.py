"""Fixtures that every test may use."""

from pathlib import Path

import pytest

from embedding_pipelines.home import HOME_VARIABLE

HASHING = """\
source: {kind: csv, path: 'data/*.csv', id: id, text: [title], metadata: [cat]}
model: {provider: hashing}
buckets: 4
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder that EMBEDDING_PIPELINES_HOME names."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    return tmp_path
