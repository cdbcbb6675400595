import gzip
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from embedding_pipelines.errors import SourceError
from embedding_pipelines_tests.contracts_sources import check_source, make, read


def test_an_array_becomes_one_document_per_object(tmp_path: Path) -> None:
    elements = [{"id": row, "m": {"title": f"t{row}"}, "text": f"é {row}"} for row in range(10_000)]
    (tmp_path / "a.json").write_text(json.dumps(elements))
    source = make(
        "json", "a.json", id="id", text=["m.title", "text"], metadata={"m.title": "string"}
    )
    documents, _ = check_source(source, tmp_path, 10_000)
    assert documents[41] == {
        "document_id": "41",
        "text": "t41\né 41",
        "source_file": "a.json",
        "source_row": 42,
        "m_title": "t41",
    }


def test_an_object_is_one_document_named_as_the_file(tmp_path: Path) -> None:
    (tmp_path / "a b.json").write_text('\n {"text": "x", "tags": ["a", 1]}')
    (tmp_path / "c.json.gz").write_bytes(gzip.compress(b'{"text": "y"}'))
    documents, _ = check_source(make("json", "*.json*", text="text"), tmp_path, 2)
    assert [row["document_id"] for row in documents] == ["a b.json", "c.json.gz"]


def test_one_object_that_cannot_be_a_document_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"text": ["x"]}')
    _, rejections = check_source(make("json", "a.json"), tmp_path, 0, 1)
    assert rejections[0].reason == "field 'text' is a list, not text or a number"


def test_the_array_may_lie_deep_in_an_object(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"n": 2, "data": {"items": [{"text": "x"}, {"text": "y"}]}}')
    check_source(make("json", "a.json", records="data.items"), tmp_path, 2)
    with pytest.raises(
        SourceError, match=r"a\.json: no array at 'data\.item'; the top level has .*'n', 'data'"
    ):
        read(make("json", "a.json", records="data.item"), tmp_path)


@pytest.mark.parametrize("data", ["[]", '{"rows": []}'])
def test_an_empty_array_has_no_documents(tmp_path: Path, data: str) -> None:
    (tmp_path / "a.json").write_text(data)
    check_source(make("json", "a.json", records="rows" if "rows" in data else None), tmp_path, 0)


@pytest.mark.parametrize("data", [b"", b" \n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_does_not_empty_the_store(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(
        SourceError, match=r"a\.json: the file is empty, .* for no records, write an empty array"
    ):
        read(make("json", "a.json"), tmp_path)


def test_an_element_that_cannot_be_a_document_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(
        b'[{"id": 1, "text": "\xc3\xa9"}, 7, {"id": 2, "text": "\xff"}, {"id": 1.5, "text": ["x"]},'
        b' {"id": null, "text": "x"}, {"id": true, "text": null}, {"id": 2.50, "text": 5}]'
    )
    documents, rejections = check_source(make("json", "a.json", id="id"), tmp_path, 3, 4)
    assert [(row["document_id"], row["text"]) for row in documents] == [
        ("1", "é"),
        ("true", ""),
        ("2.50", "5"),
    ]
    assert {each.row: each.reason for each in rejections} == {
        2: "is a number, not an object",
        3: "not valid utf-8",
        4: "field 'text' is a list, not text or a number",
        5: "the id column 'id' is empty",
    }
    assert rejections[0].raw == b"7"


def test_what_is_not_json_is_an_error_that_says_where(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"text": "x"}, {"text": "y"}, {"text" "z"}]')
    with pytest.raises(
        SourceError, match=r"a\.json: not valid JSON after record 2, between bytes 0 and 44"
    ):
        read(make("json", "a.json"), tmp_path)


def test_json_lines_are_recognized(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"text": "x"}\n{"text": "y"}\n')
    with pytest.raises(SourceError, match=r"Is it JSON Lines\? Then set source\.kind to jsonl"):
        read(make("json", "a.json"), tmp_path)


def test_a_field_that_no_element_has_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"txt": "x"}, {"txt": "y", "id": 1}]')
    with pytest.raises(SourceError) as caught:
        read(make("json", "a.json"), tmp_path)
    assert str(caught.value) == (
        "a.json: column 'text' is missing; found 'txt', 'id'. Did you mean 'txt'? "
        "Set source.text to one of them."
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_encodings_are_those_of_all_text_formats(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.json").write_bytes('[{"text": "café – naïve"}]'.encode(encoding))
    documents, _, logs = read(make("json", "a.json"), tmp_path)
    assert documents[0]["text"] == "café – naïve"
    assert logs[0].encoding == encoding


def test_a_path_to_the_array_with_an_empty_part_is_rejected_when_the_file_loads() -> None:
    with pytest.raises(ValidationError, match="no path to an array"):
        make("json", "a.json", records="data..items")


def test_half_of_a_surrogate_pair_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"text": "fine"}, {"text": "ok", "n": "\\udfff"}]')
    with pytest.raises(SourceError, match=r"a\.json: not valid JSON after record"):
        read(make("json", "a.json"), tmp_path)
