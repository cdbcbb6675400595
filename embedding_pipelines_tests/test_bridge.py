"""bridge: queries of the new model search the old, compressed table, and what they would lose too much
by is refused."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding_pipelines import migrate
from embedding_pipelines.bridge import build_bridge
from embedding_pipelines.errors import ConfigError, ReleaseError, SpaceMismatchError, StoreError
from embedding_pipelines.progress import Silent
from embedding_pipelines.providers.hashing import HashingModel
from embedding_pipelines.search import Searcher
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import (
    copy_home,
    hashing,
    run_of,
    run_steps,
    write_csv,
    write_pipeline,
)
from embedding_pipelines_tests.conftest import UNMEASURED

PIPELINE = f"""\
source: {{kind: csv, path: data/a.csv, id: id, text: [title]}}
model: {{provider: hashing, dimensions: 64}}
compression: [int8]
partitions: 1
{UNMEASURED}"""
WORDS = [f"w{number}" for number in range(300)]
CHOOSE = random.Random(0)
TEXTS = [f"{' '.join(CHOOSE.choices(WORDS, k=12))} {number}" for number in range(300)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("built")
    write_pipeline(home, "words", PIPELINE)
    write_csv(home, "a.csv", [(number, text, "") for number, text in enumerate(TEXTS)])
    run_steps(home, "words")
    return home


@pytest.fixture
def words(built: Path, home: Path) -> Path:
    return copy_home(built, home)


def test_queries_of_the_new_model_search_the_old_table_across_the_bridge(
    words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate.start(words, "words", "{provider: hashing, dimensions: 128}")
    with pytest.raises(ConfigError, match="`embedding-pipelines migrate words bridge` fits one"):
        Searcher(words, "words", bridged=True)
    with run_of(words, "words") as run:
        result = build_bridge(run)
    assert (result.pairs, result.queries, result.embedded) == (225, 75, 375)
    assert result.retention > 0.97
    assert result.retention_low >= 0.9
    assert 0 <= result.overlap <= 1
    other = hashing(dimensions=128)
    with Searcher(words, "words", bridged=True) as searcher:
        found = searcher.search(TEXTS[7], k=1)
        many = searcher.search([TEXTS[8], TEXTS[9]], k=1)
        vector = other.embed([TEXTS[10]], "query").vectors[0]
        by_vector = searcher.search_vector(vector, other.space, k=1)
    assert [each.hits[0].text for each in (found, *many, by_vector)] == TEXTS[7:11]
    assert "across a bridge from hashing:words (128 dimensions)" in found.notes[0]
    with Searcher(words, "words") as searcher:  # its own model's queries are as they were
        own = searcher.search(TEXTS[7], k=1)
        assert (own.hits[0].text, own.notes) == (TEXTS[7], [])
    with (
        Searcher(words, "words", hashing(dimensions=32)) as searcher,
        pytest.raises(SpaceMismatchError),
    ):
        searcher.search(TEXTS[7])

    sent, embed = Counter[str](), HashingModel.embed

    def counting(model: Any, inputs: Any, input_type: Any) -> Any:
        sent.update(inputs)
        return embed(model, inputs, input_type)

    monkeypatch.setattr(HashingModel, "embed", counting)
    run_steps(words, "words")  # fills the new line
    assert sum(text in sent for text in TEXTS) == 75  # the bridge has paid for the others
    path = Warehouse(words).pipeline("words").bridge
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StoreError, match="Fit it anew"):
        Searcher(words, "words")
    migrate.abort(words, "words", Silent())
    assert np.isfinite(Searcher(words, "words").search(TEXTS[7]).hits[0].score)


def test_a_bridge_that_loses_too_much_is_refused(words: Path) -> None:
    migrate.start(words, "words", "{provider: hashing, dimensions: 8}")
    with run_of(words, "words") as run:
        with pytest.raises(ReleaseError, match=r"bridge is refused.*90% is needed"):
            build_bridge(run)
        assert not run.folder.bridge.exists()


def test_a_bridge_needs_a_migration(words: Path) -> None:
    with run_of(words, "words") as run, pytest.raises(ConfigError, match="does not migrate"):
        build_bridge(run)
