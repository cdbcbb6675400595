from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedding_pipelines.errors import SourceError
from embedding_pipelines_tests.contracts_sources import check_source, make, read


def test_each_line_is_a_document_and_keeps_its_number(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        '{"id": 1, "text": "é"}\r\n\n  \n{"id": "b", "a.b": 1, "a": {"b": 2, "c": "3"}}'.encode()
    )
    source = make("jsonl", "a.jsonl", id="id", metadata={"a.b": "int", "a.c": "int"})
    documents, _ = check_source(source, tmp_path, 2)
    assert [(row["document_id"], row["source_row"]) for row in documents] == [("1", 1), ("b", 4)]
    assert documents[1]["text"] == ""
    assert (documents[1]["a_b"], documents[1]["a_c"]) == (1, 3)


def test_a_line_that_is_no_object_is_rejected_alone(tmp_path: Path) -> None:
    bad = [b'{"text": "x"', b"[1]", b'{"text": "\xff"}', b'{"text": "\\ud800"}', b"[" * 100_000]
    (tmp_path / "a.jsonl").write_bytes(
        b"\n".join([b'{"text": "\xc3\xa9"}', *bad, b'{"text": "y"}\n'])
    )
    documents, rejections = check_source(make("jsonl", "a.jsonl"), tmp_path, 2, 5)
    assert [row["source_row"] for row in documents] == [1, 7]
    assert [each.raw for each in sorted(rejections, key=lambda each: each.row)] == bad


def test_values_convert_to_their_declared_types(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"text": "a", "n": 1, "x": 0.1, "ok": true, "day": "2024-01-31",'
        ' "at": "2024-01-31T10:00:00+02:00", "tags": ["p", 1, null]}\n'
        '{"text": "b", "n": "2", "x": NaN, "ok": null, "tags": []}\n'
        '{"text": "c", "n": 1.5}\n{"text": "d", "n": 99999999999999999999}\n'
        '{"text": "e", "n": true}\n'
    )
    kinds = {
        "n": "int",
        "x": "float",
        "ok": "bool",
        "day": "date",
        "at": "timestamp",
        "tags": "list[string]",
    }
    source = make("jsonl", "a.jsonl", metadata=kinds)
    (first, second), rejections = check_source(source, tmp_path, 2, 3)
    assert [first[name] for name in ("n", "x", "ok", "tags")] == [1, 0.1, True, ["p", "1", None]]
    assert first["at"].isoformat() == "2024-01-31T08:00:00+00:00"
    assert [second[name] for name in ("n", "x", "ok", "tags")] == [2, None, None, []]
    assert rejections[0].reason == "column 'n' is '1.5', not int"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings_are_those_of_all_text_formats(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        '{"text": "le café à côté – très naïve, déjà élégant"}\nbad é\n'.encode(encoding)
    )
    documents, rejections, logs = read(make("jsonl", "a.jsonl"), tmp_path)
    assert documents[0]["text"] == "le café à côté – très naïve, déjà élégant"
    assert logs[0].encoding == encoding
    assert rejections[0].raw == "bad é".encode(
        encoding.replace("utf-16", "utf-16-le").removesuffix("-sig")
    )


def test_an_id_or_text_that_no_line_has_is_an_error_and_other_fields_are_told(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x", "id": 1}\n')
    source = make("jsonl", "a.jsonl", text=["title", "text"], metadata=["m.k"])
    documents, _, logs = read(source, tmp_path)
    assert (documents[0]["text"], documents[0]["m_k"]) == ("x", None)
    assert (logs[0].lacking, logs[0].columns) == (["title", "m.k"], ["text", "id"])
    for option in ({"id": "key"}, {"text": "body"}):
        with pytest.raises(SourceError, match=r"a\.jsonl: column '(key|body)' is missing; found"):
            read(make("jsonl", "a.jsonl", **option), tmp_path)


def test_a_field_of_a_rejected_record_is_not_missing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": [1], "text": {}, "price": 5}\n' * 3)
    source = make("jsonl", "a.jsonl", id="id", metadata={"price": "int"})
    _, rejections = check_source(source, tmp_path, 0, 3)
    assert rejections[0].reason == "field 'id' is a list, not text or a number"
    assert read(source, tmp_path)[2][0].lacking == []


def test_a_path_that_leads_through_something_else_than_objects_rejects_its_record(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"m": {"k": "x"}}\n{"m": null}\n{}\n{"m": {}}\n{"m": "x"}\n{"m": [{"k": "x"}]}\n'
    )
    documents, rejections = check_source(make("jsonl", "a.jsonl", text="m.k"), tmp_path, 4, 2)
    assert [row["text"] for row in documents] == ["x", "", "", ""]
    assert [each.reason for each in rejections] == [
        f"field 'm.k' cannot be looked up: 'm' is {what}, not an object"
        for what in ("a string", "a list")
    ]


@pytest.mark.parametrize("data", ['[{"text": "a"}, {"text": "b"}]\n', '{\n  "text": "a"\n}\n'])
def test_a_file_that_is_one_json_value_is_told(tmp_path: Path, data: str) -> None:
    (tmp_path / "a.jsonl").write_text(data)
    _, rejections, _ = read(make("jsonl", "a.jsonl"), tmp_path)
    assert rejections[0].reason.endswith("? Then set source.kind to json")
    assert all(" kind " not in rejection.reason for rejection in rejections[1:])


def test_lists_are_joined_by_line_breaks_where_they_are_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"text": ["a", null, 1.50, ""], "tags": ["p", "q"], "s": "x"}\n'
        '{"text": "b", "tags": "[\\"r\\"]"}\n{"text": [], "tags": null}\n'
        '{"text": [["c"]]}\n{"text": [{}]}\n{"text": "d", "s": ["e"]}\n{"text": "f", "tags": {}}\n'
        '{"text": "g", "tags": "h"}\n'
    )
    kinds = {"tags": "list[string]", "s": "string"}
    source = make("jsonl", "a.jsonl", text=["text", "tags"], metadata=kinds)
    documents, rejections = check_source(source, tmp_path, 3, 5)
    assert [(row["text"], row["tags"]) for row in documents] == [
        ("a\n1.50\np\nq", ["p", "q"]),
        ("b\nr", ["r"]),
        ("", None),
    ]
    assert [each.reason for each in rejections] == [
        "field 'text' is a list, not text or a number",
        "field 'text' is an object, not text or a number; name a field of it, e.g. text.a",
        "field 's' is a list, not text or a number; declare it as list[string]",
        "field 'tags' is an object, not a list",
        "field 'tags' is 'h', not list[string]",
    ]


def test_a_mark_at_the_start_of_a_file_that_was_appended_is_no_text(tmp_path: Path) -> None:
    row = b'\xef\xbb\xbf{"text": "x"}\r\n'
    (tmp_path / "a.jsonl").write_bytes(row + b"\r\n" + row)
    documents, _ = check_source(make("jsonl", "a.jsonl"), tmp_path, 2)
    assert [row["source_row"] for row in documents] == [1, 3]


def test_an_empty_file_has_no_documents(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    check_source(make("jsonl", "a.jsonl", id="id"), tmp_path, 0)


def test_an_endless_line_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n' + b" " * (40 * 2**20))
    with pytest.raises(SourceError, match=r"a\.jsonl:2: the line is longer than 32 MiB"):
        read(make("jsonl", "a.jsonl"), tmp_path)


@given(
    st.lists(
        st.binary(max_size=8) | st.sampled_from([b'{"text": "x"}', b"{}", b'{"id": 1}']), max_size=9
    )
)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_bytes_each_line_is_a_document_or_a_rejection(
    tmp_path: Path, lines: list[bytes]
) -> None:
    data = b'{"text": ""}\n' + b"\n".join(lines)
    (tmp_path / "a.jsonl").write_bytes(data)
    documents, rejections, _ = read(make("jsonl", "a.jsonl", encoding="utf-8"), tmp_path)
    rows = [row["source_row"] for row in documents] + [each.row for each in rejections]
    assert sorted(rows) == [
        number for number, line in enumerate(data.split(b"\n"), start=1) if line.strip()
    ]
