"""The proof decodes what it looks into, and tells a text from one that merely has its words."""

import gzip
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from embedding_pipelines.forget.proof import look_for
from embedding_pipelines.storage.quotes import Needles
from embedding_pipelines.stores.lancedb import Lancedb
from embedding_pipelines_tests.stores.contract import SCHEMA, batch

TEXT = 'Zoë\'s text, with "quotes" and more than forty characters of it.'


def left(root: Path, *texts: str) -> list[str]:
    return look_for(root, Lancedb(), Needles(texts)).left


def test_each_kind_of_file_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"deep": [{"text": f"see: {TEXT}"}]}))
    (tmp_path / "b.jsonl").write_text(f'{{"n": 1}}\n{json.dumps({"t": TEXT})}\n')
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    pq.write_table(pa.table({"text": [TEXT, None]}), tmp_path / "d.parquet", compression="zstd")
    pq.write_table(pa.table({"raw": [b"x,%s" % TEXT.encode()]}), tmp_path / "e.parquet")
    with closing(sqlite3.connect(tmp_path / "f.db")) as database, database:
        database.execute("CREATE TABLE events (id INTEGER, event TEXT)")
        database.execute("INSERT INTO events VALUES (1, ?)", [json.dumps({"m": TEXT[:50]})])
    (tmp_path / "g.html").write_text(f"<p>{TEXT}</p>")
    pq.write_table(pa.table({"text": ["another"]}), tmp_path / "h.parquet")
    (tmp_path / "i.json").write_text("{")
    pq.write_table(pa.table({"text": ["another"]}), tmp_path / "damaged.parquet")
    (tmp_path / "damaged.parquet").write_bytes((tmp_path / "damaged.parquet").read_bytes()[:60])
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports" / "mine.txt").write_text(TEXT)
    names = ["a.json", "b.jsonl", "c.txt.gz", "d.parquet", "damaged.parquet", "e.parquet"]
    assert left(tmp_path, TEXT) == [*names, "f.db", "g.html"]


def test_tables_are_read_as_they_are(tmp_path: Path) -> None:
    table = Lancedb().table(tmp_path / "tables", "p-1")
    table.apply(SCHEMA, [], [batch(["a", "b"], "a sentence of some length about")])
    table.index("cosine", 0)
    assert left(tmp_path, "a sentence of some length about b") == ["tables/p-1.lance"]
    assert left(tmp_path, "a sentence of some length about") == []  # rows hold others


def test_a_short_text_is_looked_for_in_columns_of_texts_alone(tmp_path: Path) -> None:
    """It may be a word of the pipeline's own state."""
    state = {"title": "rows", "removed_releases": ["red"]}
    (tmp_path / "a.json").write_text(json.dumps(state))
    (tmp_path / "b.json").write_text(json.dumps(state, indent=2))
    pq.write_table(pa.table({"text": ["red"], "kind": ["blue"]}), tmp_path / "c.parquet")
    pq.write_table(pa.table({"kind": ["blue"]}), tmp_path / "d.parquet")
    assert left(tmp_path, "title", "rows", "removed_releases", "blue") == []
    assert left(tmp_path, "red") == ["c.parquet"]
    assert not Needles({"rows"}).are_in("rows")  # of Dagster's events


def test_each_of_many_texts_is_looked_for_within_others(tmp_path: Path) -> None:
    texts = [f"text number {number:05} of very many" for number in range(1_500)]
    (tmp_path / "a.txt").write_text(f"see: {texts[1_400]}, which is no text")
    assert left(tmp_path, *texts) == ["a.txt"]
    assert left(tmp_path, *texts[:1_400]) == []


def test_a_text_is_told_where_a_note_quotes_it(tmp_path: Path) -> None:
    for name, text in (("a", "two lines\nof a text"), ("b", 'it\'s "so", and goes on')):
        (tmp_path / f"{name}.json").write_text(json.dumps({"note": f"too long: {text[:40]!r}"}))
        assert left(tmp_path, text) == [f"{name}.json"]
