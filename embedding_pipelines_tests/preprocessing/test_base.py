"""Documents become chunk rows: identity, digests, metadata, batches, counts."""

import datetime
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError
from tokenizers import Tokenizer

from embedding_pipelines import schemas
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.preprocessing import base
from embedding_pipelines.preprocessing.base import Counts, Preprocessing
from embedding_pipelines.preprocessing.chunk import Chunk, Piece
from embedding_pipelines.preprocessing.clean import Clean
from embedding_pipelines_tests.corpora import OWN, long_texts, minilm
from embedding_pipelines_tests.preprocessing.tokenizers_for_tests import (
    check_pieces,
    count,
    wordpiece,
)

LONG = "The quick brown fox jumped over the lazy dog. " * 40


def documents(
    texts: Sequence[str | None], metadata: dict[str, str] | None = None, **values: Sequence[Any]
) -> pa.RecordBatch:
    """Stored documents d0, d1, …; `values` gives the metadata columns."""
    rows = range(len(texts))
    columns: dict[str, Sequence[Any]] = {
        "document_id": [f"d{row}" for row in rows],
        "text": texts,
        "source_file": ["file.jsonl"] * len(texts),
        "source_row": [row + 1 for row in rows],
        **values,
        schemas.DOCUMENT_DIGEST: [schemas.digest(b"%d" % row) for row in rows],
    }
    return pa.RecordBatch.from_pydict(
        columns, schema=schemas.stored_documents_schema(metadata or {})
    )


def process(
    preprocessing: Preprocessing,
    *batches: pa.RecordBatch,
    limit: int = 32,
    counts: Counts | None = None,
) -> list[pa.RecordBatch]:
    cutter = preprocessing.cutter(wordpiece(), limit)
    return list(preprocessing.process(batches, cutter, counts or Counts()))


def chunks(
    preprocessing: Preprocessing, *batches: pa.RecordBatch, limit: int = 32
) -> list[dict[str, Any]]:
    return [
        row for batch in process(preprocessing, *batches, limit=limit) for row in batch.to_pylist()
    ]


SMALL = Preprocessing(chunk=Chunk(overlap=4))


def test_a_chunk_is_a_slice_of_the_cleaned_text_and_named_by_its_start() -> None:
    cleaned = Clean().text(LONG + "\r\n\r\nThe  end.")
    rows = chunks(SMALL, documents([LONG + "\r\n\r\nThe  end."]))
    assert len(rows) > 10
    for row in rows:
        assert row["text"] == cleaned[row["start"] : row["end"]]
        assert row["chunk_id"] == f"d0#{row['start']}"
        assert row["document_id"] == "d0"
        assert row[schemas.DOCUMENT_DIGEST] == schemas.digest(b"0")
    check_pieces(
        cleaned, [Piece(row["start"], row["end"], row["tokens"]) for row in rows], wordpiece(), 32
    )


def test_the_schema_is_that_of_chunks_and_metadata_of_every_type_is_carried() -> None:
    metadata = {kind.replace("[", "_").rstrip("]"): kind for kind in schemas.METADATA_TYPES}
    values: dict[str, Any] = {
        "string": ["a", None],
        "int": [1, None],
        "float": [0.5, None],
        "bool": [True, None],
        "date": [datetime.date(2024, 2, 29), None],
        "timestamp": [datetime.datetime(2024, 2, 29, 12, 30, 1, 5, datetime.UTC), None],
        "list_string": [["x", "y"], None],
    }
    batch = documents([LONG, "The dog."], metadata, **values)
    batches = process(SMALL, batch)
    assert all(each.schema == schemas.chunks_schema(metadata) for each in batches)
    rows = pa.Table.from_batches(batches).to_pylist()
    for name, column in values.items():
        assert {str(row[name]) for row in rows if row["document_id"] == "d0"} == {str(column[0])}
        assert rows[-1][name] is None


@pytest.mark.parametrize(
    ("name", "kind", "one", "other"),
    [
        ("n", "int", 1, 2),
        ("n", "float", 1.0, 1.5),
        ("n", "bool", True, None),
        ("n", "string", "", None),
        ("n", "list[string]", ["a", "b"], ["a,b"]),
        ("n", "date", datetime.date(2024, 1, 1), datetime.date(2024, 1, 2)),
    ],
)
def test_the_digest_changes_with_metadata(name: str, kind: str, one: Any, other: Any) -> None:
    rows = chunks(SMALL, documents(["dog"] * 3, {name: kind}, **{name: [one, other, one]}))
    assert rows[0]["chunk_digest"] == rows[2]["chunk_digest"] != rows[1]["chunk_digest"]


def test_the_digest_changes_with_text_and_place_and_not_with_the_batch() -> None:
    rows = chunks(SMALL, documents(["the dog", "the fox", LONG]))
    assert len({row["chunk_digest"] for row in rows}) == len(rows)
    alone = chunks(SMALL, documents(["the dog", "the fox"]), documents([LONG]))
    assert [row["chunk_digest"] for row in alone] == [row["chunk_digest"] for row in rows]


def test_documents_are_counted_and_empty_ones_have_no_chunk() -> None:
    counts = Counts()
    batch = documents(["the dog", " \n\u200b", "", None, LONG])
    rows = pa.Table.from_batches(process(SMALL, batch, counts=counts)).to_pylist()
    assert {row["document_id"] for row in rows} == {"d0", "d4"}
    assert (counts.documents, counts.empty, counts.truncated) == (5, 3, 0)
    assert (counts.chunks, counts.tokens) == (len(rows), sum(row["tokens"] for row in rows))


def test_without_chunking_each_document_is_one_chunk_and_cut_ones_are_counted() -> None:
    counts = Counts()
    whole = Preprocessing.model_validate({"chunk": None})
    batches = process(whole, documents([LONG, "the dog", " "]), counts=counts)
    rows = pa.Table.from_batches(batches).to_pylist()
    assert [row["chunk_id"] for row in rows] == ["d0#0", "d1#0"]
    assert rows[0]["tokens"] <= 32
    assert LONG.startswith(rows[0]["text"] + " ")
    assert (counts.documents, counts.empty, counts.truncated, counts.chunks) == (3, 1, 1, 2)
    every = count(wordpiece(), LONG)
    assert [row["unseen_tokens"] for row in rows] == [every - rows[0]["tokens"], 0]
    assert counts.unseen_tokens == every - rows[0]["tokens"] > 0


def test_batches_are_bounded_and_rows_stay_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MAX_ROWS", 7)
    monkeypatch.setattr(base, "_GROUP_BYTES", 5_000)
    texts = [LONG, *["the dog"] * 20, LONG * 4, "fox"]
    batches = process(SMALL, documents(texts), documents(["end"]))
    assert max(batch.num_rows for batch in batches) == 7
    rows = pa.Table.from_batches(batches).to_pylist()
    order = list(dict.fromkeys(row["document_id"] for row in rows))
    assert order == [f"d{row}" for row in range(len(texts))]
    monkeypatch.undo()
    again = chunks(SMALL, documents(texts), documents(["end"]))
    assert [row["chunk_digest"] for row in again] == [row["chunk_digest"] for row in rows]


def test_no_documents_give_no_batches() -> None:
    assert chunks(SMALL) == chunks(SMALL, documents([])) == []


def test_options_that_cannot_work_are_refused_before_the_first_batch() -> None:
    with pytest.raises(ConfigError, match=r"preprocessing\.chunk\.overlap"):
        Preprocessing().cutter(wordpiece(), 32)


def test_the_file_form_has_defaults_and_refuses_unknown_keys() -> None:
    assert Preprocessing.model_validate({}) == Preprocessing(clean=Clean(), chunk=Chunk())
    with pytest.raises(ValidationError, match="stem"):
        Preprocessing.model_validate({"stem": True})


def test_the_recipe_tells_all_options_apart() -> None:
    options: list[dict[str, Any]] = [
        {},
        {"chunk": None},
        {"chunk": {"max_tokens": 128}},
        {"chunk": {"overlap": 0}},
        *({"clean": {name: not field.default}} for name, field in Clean.model_fields.items()),
        {"html": False},
        {"html": True},
    ]
    assert len({Preprocessing.model_validate(each).version for each in options}) == len(options)


@pytest.mark.slow
def test_every_chunk_of_long_documents_fits_minilm_and_no_text_is_lost() -> None:
    tokenizer = Tokenizer.from_file(str(minilm() / "tokenizer.json"))
    texts = long_texts(OWN)
    counts = Counts()
    cutter = Preprocessing().cutter(tokenizer, 256)
    batches = Preprocessing().process([documents(texts)], cutter, counts)
    rows = pa.Table.from_batches(batches).to_pylist()
    tokenizer.no_padding()
    tokenizer.no_truncation()
    lengths = [
        len(encoding) for encoding in tokenizer.encode_batch_fast([row["text"] for row in rows])
    ]
    assert [row["tokens"] for row in rows] == lengths
    assert max(lengths) <= 256
    assert len({row["chunk_id"] for row in rows}) == len(rows)
    covered = dict.fromkeys((f"d{row}" for row in range(len(texts))), 0)
    cleaned = dict(zip(covered, Clean().texts(texts), strict=True))
    for row in rows:
        name = row["document_id"]
        assert row["text"] == cleaned[name][row["start"] : row["end"]]
        assert not cleaned[name][covered[name] : row["start"]].strip()
        covered[name] = row["end"]
    assert not any(cleaned[name][end:].strip() for name, end in covered.items())
    assert counts.documents == len(texts)
    assert counts.empty == counts.truncated == 0
    assert counts.tokens / counts.chunks > 160  # no crumbs
