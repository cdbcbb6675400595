"""The full-text index: which rows it finds, how it is kept up, and that words leave with their rows."""

from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest

from embedding_pipelines.schemas import TEXT
from embedding_pipelines.spec.search import Language
from embedding_pipelines.stores import lancedb as lancedb_store
from embedding_pipelines.stores._lance import call
from embedding_pipelines.stores._lance_index import MAX_UNINDEXED_SHARE
from embedding_pipelines.stores.lancedb import Lancedb, LanceTable
from embedding_pipelines_tests.stores.contract import SCHEMA, batch
from embedding_pipelines_tests.stores.tables import list_indexed_columns, token_files

PLANETS = ["Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune"]


def rows_of(texts: dict[str, str]) -> pa.RecordBatch:
    rows = batch(list(texts))
    at = SCHEMA.names.index(TEXT)
    return rows.set_column(at, SCHEMA.field(at), pa.array(list(texts.values()), pa.string()))


def table_of(folder: Path, texts: dict[str, str], language: str | None = "English") -> LanceTable:
    table = LanceTable(folder, "p-1", Lancedb())
    table.apply(SCHEMA, [], [rows_of(texts)])
    table.index("cosine", 0, language)
    return table


def matches(table: LanceTable, text: str, k: int = 10, filter: str | None = None) -> list[str]:
    version = table.version
    assert version is not None
    ids: list[str] = table.search_text(text, k, filter, version)["chunk_id"].to_pylist()
    return ids


def test_words_are_found_by_their_stems_and_signs_are_no_query_language(tmp_path: Path) -> None:
    texts = {
        "a": "He was running to the café",
        "b": "a run",
        "c": "They walk",
        "d": "私は猫が好きです。東京に住んでいます",
        "e": "The Who",
    }
    table = table_of(tmp_path, texts)
    version = table.version
    assert version is not None
    assert table.has_text_index(version)
    assert set(matches(table, "runs")) == {"a", "b"}
    assert matches(table, "CAFE") == ["a"]
    assert matches(table, "東京") == ["d"]
    assert matches(table, "the who")[0] == "e"
    assert set(matches(table, 'walk* AND (run OR "x" -y +z ~2 ^3 title:')) >= {"b", "c"}
    assert matches(table, "!!!") == matches(table, "nothing of this") == []
    found = table.search_text("run", 10, None, version)
    assert found["_score"].to_pylist() == sorted(found["_score"].to_pylist(), reverse=True)
    assert found["_score"].type == pa.float32()
    assert "vector" not in found.column_names


@pytest.mark.parametrize("language", get_args(Language))
def test_every_language_that_a_file_may_name_makes_an_index(tmp_path: Path, language: str) -> None:
    table = table_of(tmp_path, {"a": "Häuser"}, language)
    assert matches(table, "Häuser") == ["a"]


def test_the_filter_gives_what_filtering_all_hits_would(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    texts = {f"row{n}": " ".join(generator.choice(PLANETS, 5)) for n in range(400)}
    table = table_of(tmp_path, texts)
    for words in ("mars", "venus earth", "jupiter saturn neptune"):
        everything = matches(table, words, 400)
        expected = [name for name in everything if name[-1] == "3"]
        assert 5 < len(expected) < 60
        assert matches(table, words, 400, "cat = '3'") == expected


def test_of_many_documents_words_find_what_naming_them_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    texts = {f"row{n}": " ".join(generator.choice(PLANETS, 5)) for n in range(100)}
    table, only = table_of(tmp_path, texts), [f"row{n}" for n in range(0, 100, 3)]
    version = table.version
    assert version is not None
    documents = table.search_text("Venus Mars", 1, None, version)["document_id"].to_pylist()
    only += documents
    named = table.search_text("Venus Mars", 8, None, version, only=only)
    monkeypatch.setattr(lancedb_store, "MOST_NAMED", 10)
    rows = table.search_text("Venus Mars", 8, None, version, only=only)
    assert rows["_score"].to_pylist() == named["_score"].to_pylist()
    assert rows.schema == named.schema
    assert set(rows["document_id"].to_pylist()) <= set(only)


def test_new_rows_are_found_before_they_are_in_the_index_and_deleted_ones_are_not(
    tmp_path: Path,
) -> None:
    table = table_of(tmp_path, {f"row{n}": f"animal{n} in a room" for n in range(100)})
    made = _index(table)
    table.apply(SCHEMA, ["row7"], [rows_of({"new": "an aardvark in a room"})])
    table.index("cosine", 0, "English")
    assert _index(table).index_uuid == made.index_uuid  # one row of a hundred waits
    assert _index(table).num_unindexed_rows == 1
    assert matches(table, "aardvarks") == ["new"]
    assert matches(table, "animal7") == []
    share = int(100 * MAX_UNINDEXED_SHARE) + 1
    table.apply(SCHEMA, [], [rows_of({f"more{n}": "a zebra" for n in range(share)})])
    table.index("cosine", 0, "English")
    assert _index(table).num_unindexed_rows == 0
    assert len(matches(table, "zebras")) == share


def test_the_index_follows_the_language_and_goes_when_nobody_searches_by_words(
    tmp_path: Path,
) -> None:
    texts = {"a": "Die Häuser", "b": "running"}
    table = table_of(tmp_path, texts, None)
    version = table.version
    assert version is not None
    assert (list_indexed_columns(table), table.has_text_index(version)) == ([], False)
    assert matches(table, "running") == ["b"]  # by reading all texts
    assert matches(table, "runs") == []
    table.index("cosine", 0, "German")
    assert matches(table, "Haus") == ["a"]
    table.index("cosine", 0, "English")
    assert (matches(table, "Haus"), matches(table, "run")) == ([], ["b"])
    table.index("cosine", 0)
    assert list_indexed_columns(table) == []
    assert token_files(tmp_path) == set()


def test_a_table_without_rows_has_its_index_too(tmp_path: Path) -> None:
    table = table_of(tmp_path, {})
    assert matches(table, "anything") == []
    table.apply(SCHEMA, [], [rows_of({"a": "running"})])
    table.index("cosine", 0, "English")
    assert matches(table, "run") == ["a"]


def test_words_of_a_deleted_text_leave_the_files_of_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What merging the index would keep; a fresh index over the same rows has the same words."""
    monkeypatch.setattr(lancedb_store, "MAX_UPDATES", 2)
    texts = {f"row{n}": f"animal{n} in room{n % 5}" for n in range(300)}
    table = table_of(tmp_path / "old", texts | {"gone": "an aardvark whose words must go"})
    with_it = token_files(tmp_path / "old")
    table.apply(SCHEMA, ["gone"], [])
    table.index("cosine", 0, "English")
    later = 0
    while with_it & (after := token_files(tmp_path / "old")):
        later += 1
        texts[f"new{later}"] = f"bird{later}"
        table.apply(SCHEMA, [], [rows_of({f"new{later}": f"bird{later}"})])
        table.index("cosine", 0, "English")
    assert later <= 2
    order = pa.Table.from_batches(table.scan(["chunk_id"]))["chunk_id"].to_pylist()
    table_of(tmp_path / "fresh", {name: texts[name] for name in order})
    assert after == token_files(tmp_path / "fresh")


def test_a_flipped_bit_in_the_index_is_noticed(tmp_path: Path) -> None:
    table = table_of(tmp_path, {f"row{n}": f"animal{n}" for n in range(50)})
    version = table.version
    assert version is not None
    assert table.damage(version) is None
    for path in sorted(tmp_path.rglob("_indices/*/*.lance")):
        content = path.read_bytes()
        path.write_bytes(content[:9] + bytes([content[9] ^ 1]) + content[10:])
        assert str(path) in (LanceTable(tmp_path, "p-1", Lancedb()).damage(version) or "")
        path.write_bytes(content)
        table.index("cosine", 0, "English")  # what is damaged once stays so on record
        version = table.version
        assert version is not None


def _index(table: LanceTable):  # type: ignore[no-untyped-def]
    (index,) = call(table._open().list_indices)
    return index
