"""The live table as a DataFrame: what is live, and the vectors that the model gave."""

import sys
from pathlib import Path

import numpy as np
import pytest

from embedding_pipelines.access import OPERATOR
from embedding_pipelines.errors import (
    ConfigError,
    PermissionsError,
    PermissionsLostError,
    ReleaseError,
    StoreError,
)
from embedding_pipelines.explore.table import LiveTable, load_table, load_vectors
from embedding_pipelines.schemas import SPACE_ID_KEY, VECTOR
from embedding_pipelines.vectors import to_matrix
from embedding_pipelines_tests.chain import hashing, live_rows, run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.explore.topics import COMPRESSED, HEADER, PIPELINE, write_topics

TYPES = {
    "chunk_id": "str",
    "document_id": "str",
    "start": "Int64",
    "end": "Int64",
    "text": "str",
    "topic": "str",
    "year": "Int64",
    "tags": "object",
}


def test_every_live_row_stands_in_the_table_with_its_types(home: Path) -> None:
    write_topics(home)
    frame = load_table(home, "p", None)
    assert frame.dtypes.astype(str).to_dict() == TYPES
    live = live_rows(home, "p")
    assert sorted(frame["chunk_id"]) == sorted(live)
    for row in frame.to_dict("records"):
        other = live[row["chunk_id"]]
        assert [row["text"], row["topic"], row["end"]] == [
            other[name] for name in ("text", "topic", "end")
        ]
    tagged = frame.set_index("document_id")
    assert tagged.loc["animals-3", "tags"].tolist() == ["a", "b"]
    assert tagged.loc["animals-3", "year"] == 3
    assert tagged["year"].isna().sum() == 3


@pytest.mark.parametrize("pipeline", [PIPELINE, COMPRESSED])
def test_exact_vectors_are_those_of_the_model(home: Path, pipeline: str) -> None:
    write_topics(home, pipeline=pipeline)
    frame = load_table(home, "p")
    vectors = np.stack(frame["vector"])
    assert vectors.dtype == np.float32
    expected = hashing().embed(frame["text"].tolist(), "document").vectors
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    table = LiveTable(home, "p")
    assert table.schema("exact").metadata[SPACE_ID_KEY].decode() == hashing().space.id


def test_stored_vectors_are_what_the_compression_has_kept(home: Path) -> None:
    write_topics(home, pipeline=COMPRESSED)
    exact, stored = (
        np.stack(load_table(home, "p", kind)["vector"]) for kind in ("exact", "stored")
    )
    assert stored.shape == exact.shape
    cosines = (exact * stored).sum(axis=1) / np.linalg.norm(stored, axis=1)
    usual = load_table(home, "p", None)["topic"] != ""
    assert cosines[usual].min() > 0.99
    assert cosines[usual].max() < 0.999999


def test_an_older_release_that_is_live_again_is_what_is_read(home: Path) -> None:
    from embedding_pipelines.releases import rollback
    from embedding_pipelines.storage.warehouse import Warehouse

    write_topics(home, pipeline=COMPRESSED)
    before = load_table(home, "p").set_index("chunk_id").sort_index()
    write_csv(home, "topics.csv", [("new", "a new text", "", "", "")], HEADER)
    run_steps(home, "p")
    assert load_table(home, "p")["document_id"].tolist() == ["new"]
    rollback(Warehouse(home).pipeline("p"), None)
    after = load_table(home, "p").set_index("chunk_id").sort_index()
    assert after.index.tolist() == before.index.tolist()
    assert np.array_equal(np.stack(after["vector"]), np.stack(before["vector"]))


def test_exact_vectors_that_are_lost_are_an_error_and_stored_ones_are_there(home: Path) -> None:
    write_topics(home, pipeline=COMPRESSED)
    cache = LiveTable(home, "p").warehouse.cache
    for file in cache.parent.glob(f"{cache.name}*"):
        file.unlink()
    with pytest.raises(StoreError, match=r"chunk '.*#0' is not in the embedding cache .*stored"):
        load_table(home, "p")
    assert len(load_table(home, "p", "stored")) == 123


def test_a_sample_is_by_chance_and_always_the_same(home: Path) -> None:
    write_topics(home)
    table = LiveTable(home, "p")
    numbers, rows = table.sample(30, "stored", ["chunk_id"])
    again, others = table.sample(30, "stored", ["chunk_id"])
    assert np.array_equal(numbers, again)
    assert rows.equals(others)
    batches = table.read("stored", ["chunk_id"])
    every = np.concatenate([to_matrix(batch[VECTOR]) for batch in batches])
    assert np.array_equal(to_matrix(rows[VECTOR]), every[numbers])
    assert len(np.unique(numbers)) == 30
    assert len(table.sample(1_000, "stored", ["chunk_id"])[0]) == 123


def test_what_is_not_there_is_a_readable_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pipeline(home, "p", PIPELINE)
    with pytest.raises(ReleaseError, match="embedding-pipelines run p"):
        load_table(home, "p")
    write_topics(home)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match=r"pip install 'embedding-pipelines\[explore\]'"):
        load_table(home, "p")


def test_a_table_is_of_what_its_reader_may_see(home: Path) -> None:
    section = "permissions: {kind: csv, path: acl.csv, id: document}\n"
    write_topics(home, PIPELINE + section)
    rows = [f"animals-{number},ann" for number in range(40)]
    (home / "acl.csv").write_text("\n".join(["document,principals", *rows, ""]))
    frame = load_table(home, "p", principals=["ann"])
    assert set(frame["topic"]) == {"animals"}
    assert load_vectors(home, "p", principals=["ann"]).shape == (len(frame), 64)
    assert len(load_table(home, "p", None, principals=["nobody"])) == 0
    assert len(load_table(home, "p", None, principals=OPERATOR)) == 123
    table = LiveTable(home, "p", ["ann"])
    numbers, sample = table.sample(7, "stored", ["document_id"])
    assert (table.rows, len(numbers), len(sample)) == (40, 7, 7)
    with pytest.raises(PermissionsError, match="say for whom"):
        load_table(home, "p")
    (home / "acl.csv").unlink()
    with pytest.raises(PermissionsLostError, match="answers nothing"):
        load_vectors(home, "p", principals=["ann"])
