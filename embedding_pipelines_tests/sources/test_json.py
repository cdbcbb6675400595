import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from embedding_pipelines.errors import SourceError
from embedding_pipelines.sources import json_records
from embedding_pipelines.sources.base import ReadLog
from embedding_pipelines.sources.json_records import MAX_DEPTH
from embedding_pipelines.sources.text import Text, open_text
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
    (tmp_path / "a.json").write_text('{"text": {"en": "x"}}')
    _, rejections = check_source(make("json", "a.json"), tmp_path, 0, 1)
    assert rejections[0].reason == (
        "field 'text' is an object, not text or a number; name a field of it, e.g. text.en"
    )


def test_the_array_may_lie_deep_in_an_object(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"n": 2, "data": {"items": [{"text": "x"}, {"text": "y"}]}}')
    check_source(make("json", "a.json", records="data.items"), tmp_path, 2)
    with pytest.raises(
        SourceError, match=r"a\.json: no array at 'data\.item'; the top level has .*'n', 'data'"
    ):
        read(make("json", "a.json", records="data.item"), tmp_path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ('{"n": 1, "data": {"rows": [{"text": "x"}]}}', "are 'data.rows' its records? Then set"),
        ('{"a": {"text": "x"}, "b": {"text": "y"}}', "write these as an array of records"),
        ('{"text": {"0": "x"}, "id": {"0": 1}}', "columns and not records"),
        ('{"text": ["x"], "id": [1]}', "pandas does with orient='records'"),
    ],
)
def test_one_object_that_is_meant_as_many_records_is_told(
    tmp_path: Path, data: str, words: str
) -> None:
    (tmp_path / "a.json").write_text(data)
    with pytest.raises(SourceError, match=re.escape(words)):
        read(make("json", "a.json", id="id"), tmp_path)


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
        b'[{"id": 1, "text": "\xc3\xa9"}, 7, {"id": 2, "text": "\xff"}, {"id": [5], "text": "x"},'
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
        4: "field 'id' is a list, not text or a number",
        5: "the id column 'id' is empty",
    }
    assert rejections[0].raw == b"7"


def test_what_is_not_json_is_an_error_that_says_where(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"text": "x"}, {"text": "y"},\n{"text" "z"}]')
    with pytest.raises(
        SourceError,
        match=r"a\.json:2: not valid JSON after record 2 \(Expecting ':' delimiter, at character "
        r"9 of the line\)\. Correct the file",
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
    (tmp_path / "a.json").write_bytes(
        '[{"text": "le café à côté – très naïve, déjà élégant"}]'.encode(encoding)
    )
    documents, _, logs = read(make("json", "a.json"), tmp_path)
    assert documents[0]["text"] == "le café à côté – très naïve, déjà élégant"
    assert logs[0].encoding == encoding


def test_a_path_to_the_array_with_an_empty_part_is_rejected_when_the_file_loads() -> None:
    with pytest.raises(ValidationError, match="no path to an array"):
        make("json", "a.json", records="data..items")


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_half_of_a_surrogate_pair_rejects_its_record_where_it_is_used(
    tmp_path: Path, kind: str
) -> None:
    bad = [r"\udcb2", r"\ud83d\u0041", r"\udc00\ud800"]
    rows = [f'{{"id": {row}, "text": "a {text}"}}' for row, text in enumerate(bad)]
    rows += [f'{{"id": 9, "text": "fine", "n": "{bad[0]}"}}', r'{"id": 10, "text": "\ud83d\ude00"}']
    write_records(tmp_path / "a", kind, rows)
    documents, rejections = check_source(make(kind, "a", id="id"), tmp_path, 2, 3)
    assert [row["text"] for row in documents] == ["fine", "😀"]
    assert {each.reason for each in rejections} == {
        "field 'text' holds half of a surrogate pair, which is no character"
    }
    assert [each.raw.decode() for each in rejections] == rows[:3]


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_a_number_is_the_text_that_stands_there(tmp_path: Path, kind: str) -> None:
    numbers = ["1.10", "1.1", "20240105123456789.25", "1e3", "1E400", "-0", "5.0", "1e999999999"]
    numbers += ["9" * 5_000, "0." + "3" * 5_000]
    rows = [f'{{"id": {number}, "text": {number}, "unused": [{number}]}}' for number in numbers]
    write_records(tmp_path / "a", kind, rows)
    documents, _ = check_source(make(kind, "a", id="id"), tmp_path, len(numbers))
    assert [row["document_id"] for row in documents] == numbers
    assert [row["text"] for row in documents] == numbers


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_no_number_is_no_value_and_counted(tmp_path: Path, kind: str) -> None:
    row = '{"text": "NaN", "x": NaN, "y": Infinity, "z": "-inf", "s": NaN, "l": [NaN, 1.50]}'
    write_records(tmp_path / "a", kind, [row])
    kinds = {"x": "float", "y": "int", "z": "float", "s": "string", "l": "list[string]"}
    documents, _, logs = read(make(kind, "a", metadata=kinds), tmp_path)
    assert [documents[0][name] for name in ("text", *kinds)] == ["NaN", *[None] * 4, [None, "1.50"]]
    assert {name: dict(words) for name, words in logs[0].absent.items() if words} == {
        "x": {"NaN": 1}, "y": {"Infinity": 1}, "z": {"-inf": 1}, "s": {"NaN": 1}, "l": {"NaN": 1},
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_a_record_that_is_too_much_or_ambiguous_is_rejected_alone(
    tmp_path: Path, kind: str
) -> None:
    deep = '{"text": "x", "a": ' + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}"
    deeper = '{"text": "x", "a": ' + "[" * 100_000 + "]" * 100_000 + "}"
    rows = [
        '{"text": "a"}',
        deep,
        deeper,
        deep.replace("[[", "[", 1).replace("]]", "]", 1),
        '{"text": "1", "text": "2"}',
        '{"text": "twice unused", "n": 1, "n": 2}',
        '{"text": "brackets in a text", "n": "' + "[" * 200 + '"}',
    ]
    write_records(tmp_path / "a", kind, rows)
    documents, rejections = check_source(make(kind, "a"), tmp_path, 4, 3)
    assert [row["source_row"] for row in documents] == [1, 4, 6, 7]
    assert [each.reason for each in rejections] == [
        *["is nested deeper than 100 levels"] * 2,
        "field 'text' stands twice in the record",
    ]
    assert [each.raw.decode() for each in rejections] == [rows[at] for at in (1, 2, 4)]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ('[{"text": "x"},]', "a comma before the end of the array"),
        ('[{"text": "x"} {"text": "y"}]', "Expecting ',' delimiter"),
        ('[{"text": "x"}', "Expecting ',' delimiter"),
        ('[{"text": "x', "Unterminated string"),
        ('[{"text": "x"}, tru', "Expecting value"),
        ('[{"text": "x"}]]', "there is more after the end"),
        ('[{"text": "x"}, ' + "[" * 5_000, "a bracket is not closed"),
        ('{"text": "x"} {"text": "y"}', "there is more after the end"),
    ],
)
def test_what_follows_no_syntax_is_an_error(tmp_path: Path, data: str, problem: str) -> None:
    (tmp_path / "a.json").write_text(data)
    with pytest.raises(SourceError, match=f"a.json:1: not valid JSON after record .*{problem}"):
        read(make("json", "a.json"), tmp_path)


@pytest.mark.parametrize("data", ["5", '"text"', "null", "NaN"])
def test_a_file_that_is_one_value_has_no_records(tmp_path: Path, data: str) -> None:
    (tmp_path / "a.json").write_text(data)
    with pytest.raises(SourceError, match=r"a\.json: no array or object\. Set source\.records"):
        read(make("json", "a.json"), tmp_path)
    (tmp_path / "a.jsonl").write_text(data + "\n[1]\n")
    _, rejections = check_source(make("jsonl", "a.jsonl"), tmp_path, 0, 2)
    assert [each.raw.decode() for each in rejections] == [data, "[1]"]


def test_what_stands_around_the_array_is_passed_but_read(tmp_path: Path) -> None:
    around = (
        '{"skip": {"a": [1, {"b": []}]}, "n": 5, "a.b": 1, "d": {"rows": [%s], "x": [[]]}, "e": {}}'
    )
    (tmp_path / "a.json").write_text(around % '{"text": "x"}')
    source = make("json", "a.json", records="d.rows")
    check_source(source, tmp_path, 1)
    (tmp_path / "a.json").write_text((around % '{"text": "x"}')[:-3])
    with pytest.raises(SourceError, match="not valid JSON after record 1"):
        read(source, tmp_path)
    (tmp_path / "a.json").write_text('{"d": {"rows": []}, "d": {"rows": []}}')
    with pytest.raises(SourceError, match=r"'d\.rows' stands 2 times in it\. Leave one"):
        read(source, tmp_path)


def test_a_record_that_is_too_long_is_an_error_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_records, "MAX_RECORD_BYTES", 2**20)
    (tmp_path / "a.json").write_text('[{"text": "x"},\n {"text": "' + "x" * 2**23 + '"}]')
    with pytest.raises(SourceError, match=r"a\.json:2: record 2 is longer than 1 MiB\. Split it"):
        read(make("json", "a.json"), tmp_path)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(st.text(max_size=3), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=5,
)), max_size=6), size=st.integers(1, 20), ascii_only=st.booleans())  # fmt: skip
def test_however_the_file_is_cut_into_blocks_the_records_are_the_same(
    tmp_path: Path, rows: list[dict[str, Any]], size: int, ascii_only: bool
) -> None:
    records = [{"text": f"t{row}", **values, "id": row} for row, values in enumerate(rows)]
    data = json.dumps({"a": [1.5, {}], "rows": records}, ensure_ascii=ascii_only, indent=1)
    (tmp_path / "a.json").write_bytes(data.encode())
    file = make("json", "a.json").files(tmp_path)[0]
    text = open_text(file, "utf-8", ReadLog(lambda rejection: None))
    blocks = [data.encode()[at : at + size] for at in range(0, len(data.encode()), size)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "blocks", lambda self: iter(blocks))
        stream = json_records.Stream(text)
        assert stream.peek() == "{"
        names = {}
        for name in stream.members():
            assert stream.peek() == "["
            names[name] = [part for _, part in stream.elements()]
        assert stream.peek() == ""
    assert names["a"] == ["1.5", "{}"]
    expected = [json.loads(json.dumps(record)) for record in records]
    assert repr([json.loads(part) for part in names["rows"]]) == repr(expected)


def write_records(path: Path, kind: str, rows: list[str]) -> None:
    text = "\n".join(rows) if kind == "jsonl" else "[" + ",\n".join(rows) + "]"
    path.write_text(text)
