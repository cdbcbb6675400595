"""Whatever the dialect, each record is a document exactly as it was written, or rejected."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from embedding_pipelines.errors import SourceError
from embedding_pipelines.sources.csv_records import NOT_CLOSED, NOT_THE_END, SWALLOWED
from embedding_pipelines_tests.contracts_sources import check_source, make, read


@dataclass(frozen=True)
class Dialect:
    delimiter: str
    quote: str | None
    escape: str | None
    end: str
    encoding: str
    quote_all: bool

    @property
    def options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("delimiter", "quote", "escape")}

    def cell(self, text: str) -> str:
        special = {self.delimiter, self.quote, "\r", "\n", self.escape} - {None}
        if self.quote is None:
            escape = self.escape or ""
            return "".join(escape + each if each in special else each for each in text)
        if not self.quote_all and not special & set(text):
            return text
        if self.escape:
            text = text.replace(self.escape, self.escape * 2)
        return (
            self.quote
            + text.replace(self.quote, (self.escape or self.quote) + self.quote)
            + self.quote
        )

    def line(self, cells: list[str]) -> str:
        return self.delimiter.join(map(self.cell, cells)) + self.end

    def can_write(self, text: str) -> bool:
        if self.quote is None and self.escape is None and {self.delimiter, "\r", "\n"} & set(text):
            return False
        return text.encode(self.encoding, "ignore").decode(self.encoding) == text


dialects = st.builds(
    Dialect,
    delimiter=st.sampled_from(",;\t|"),
    quote=st.sampled_from(['"', "'", None]),
    escape=st.sampled_from([None, "\\"]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "cp1252", "shift_jis"]),
    quote_all=st.booleans(),
)
texts = st.text(st.sampled_from("ab1 ,;\t|\"'\\\r\n#é表\x00="), max_size=8)


@given(
    dialects,
    st.lists(st.tuples(texts, st.integers(-(2**63), 2**63 - 1)), max_size=8),
    st.integers(1, 9),
)
@example(Dialect("\t", None, "\\", "\r\n", "utf-8", False), [("\\\r", 1), ("N", 2)], 3)
@example(Dialect(",", '"', "\\", "\r", "utf-8", False), [('\\"\n\\', 1), ("\\", 2)], 1)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_each_record_is_right_or_rejected(
    tmp_path: Path, dialect: Dialect, rows: list[tuple[str, int]], block: int
) -> None:
    rows = [row for row in rows if dialect.can_write(row[0])]
    lines = [dialect.line(["id", "text", "n"])]
    lines += [dialect.line([f"r{at}", text, str(n)]) for at, (text, n) in enumerate(rows)]
    (tmp_path / "a.csv").write_bytes("".join(lines).encode(dialect.encoding))
    source = make(
        "csv", "a.csv", id="id", metadata={"n": "int"}, encoding=dialect.encoding, **dialect.options
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("embedding_pipelines.sources.text.BLOCK_BYTES", block)
        documents, rejections, _ = read(source, tmp_path)
    starts = [1]
    for line in lines:
        starts.append(starts[-1] + line.replace("\r\n", "\n").replace("\r", "\n").count("\n"))
    expected = {(f"r{at}", text, n, starts[at + 1]) for at, (text, n) in enumerate(rows)}
    actual = [(row["document_id"], row["text"], row["n"], row["source_row"]) for row in documents]
    assert len(actual) == len({*actual})
    assert {*actual} <= expected
    rejected = {each.row for each in rejections}
    assert all(start in rejected for *_, start in expected - {*actual})
    assert all(SWALLOWED in each.reason for each in rejections)
    assert len(rejected) == len(rejections)


ESCAPED = (
    'id,text,tag\n1,"She said \\"hi\\" twice",x\n2,"the \\"big\\" one, and more",y\n3,plain,z\n'
    '4,"12\\" disc",inch\n5,"C:\\\\temp\\\\",path\n'
)


def test_an_escape_makes_the_next_character_stand_for_itself(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(ESCAPED)
    source = make("csv", "a.csv", id="id", metadata=["tag"], escape="\\")
    documents, _ = check_source(source, tmp_path, 5)
    assert [row["text"] for row in documents] == [
        'She said "hi" twice',
        'the "big" one, and more',
        "plain",
        '12" disc',
        "C:\\temp\\",
    ]


def test_quotes_that_are_escaped_are_told_where_no_escape_is_set(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(ESCAPED)
    documents, rejections = check_source(make("csv", "a.csv", id="id"), tmp_path, 2, 3)
    assert [row["text"] for row in documents] == ["plain", "C:\\\\temp\\\\"]
    assert [each.row for each in rejections] == [2, 3, 5]
    hint = "; if a backslash escapes quotes in this file, set source.escape to it"
    assert {each.reason for each in rejections} == {NOT_THE_END + hint}
    assert rejections[2].raw == b'4,"12\\" disc",inch'


UNQUOTED = [
    "A plain sentence.",
    '"Open quotes, he said, and never closed.',
    "The third line.",
    'The fourth is "fine"',
    'Fifth, ending in a quote."',
    '"Stop!" she cried.',
    '"Whole sentence in quotes."',
    "Last.",
]


def test_without_quotes_every_line_is_a_record_as_it_stands(tmp_path: Path) -> None:
    rows = [f"{at}\t{text}\ten" for at, text in enumerate(UNQUOTED)]
    (tmp_path / "a.tsv").write_text("\n".join(["id\ttext\tlang", *rows]))
    source = make("csv", "a.tsv", id="id", quote=None)
    assert [row["text"] for row in check_source(source, tmp_path, 8)[0]] == UNQUOTED
    documents, rejections = check_source(make("csv", "a.tsv", id="id"), tmp_path, 6, 2)
    assert [row["text"] for row in documents if not row["text"].startswith("Whole")] == [
        UNQUOTED[at] for at in (0, 2, 3, 4, 7)
    ]
    hint = "; if quotes mean nothing in this file, set source.quote to null"
    assert [(each.row, each.reason) for each in rejections] == [
        (3, NOT_CLOSED + hint),
        (7, NOT_THE_END + hint),
    ]


@pytest.mark.parametrize(
    ("delimiter", "key", "swallowed", "is_told"),
    [
        ("\t", "{}", 1, True),
        ("\t", "word", 50, True),
        (",", "{}", 1, True),
        (",", "SKU-{}", 1, True),
        (",", "2024-01-{:02}", 3, True),
        (",", "word", 2, False),  # might be a text
        (",", "word", 50, True),
    ],
)
def test_lines_that_look_like_rows_are_told_when_a_quote_swallows_them(
    tmp_path: Path, delimiter: str, key: str, swallowed: int, is_told: bool
) -> None:
    rows = [f"{key.format(at)}{delimiter}text {'x' * at}" for at in range(60)]
    rows[3] = f'{key.format(3)}{delimiter}"text xxx'
    rows[3 + swallowed] += '"'
    (tmp_path / "a.csv").write_text("\n".join([f"id{delimiter}text", *rows]))
    documents, rejections, _ = read(make("csv", "a.csv", delimiter=delimiter), tmp_path)
    assert [each.row for each in rejections] == [*range(5, 6 + swallowed)] * is_told
    assert [each.raw.decode() for each in rejections] == rows[3 : 4 + swallowed] * is_told
    assert len(documents) == 60 - swallowed - is_told
    for each in rejections:
        assert f"{SWALLOWED}, lines 5 to {5 + swallowed}" in each.reason


@pytest.mark.parametrize(
    "text",
    [
        "Dear all,\nthanks, Bob",
        "first\nsecond, third\nfourth, fifth\nsixth, last",
        "12 High Street\nLondon, UK",
        "one\n\ntwo",
        "a list:\n1, 2, 3\n4",
    ],
)
def test_a_text_of_several_lines_is_one_document(tmp_path: Path, text: str) -> None:
    rows = [f'{at},"{text}"' for at in range(9)] + [f"{at},plain {at}" for at in range(10, 20)]
    (tmp_path / "a.csv").write_text("\n".join(["id,text", *rows]))
    documents, _ = check_source(make("csv", "a.csv", id="id"), tmp_path, 19)
    assert documents[0]["text"] == text


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_files_put_together_have_their_header_once(tmp_path: Path, end: str, mark: str) -> None:
    part = end.join(["id,text", "{0},a", '"{1}","b"', ""])
    (tmp_path / "a.csv").write_text(
        mark + part.format(1, 2) + mark + part.format(3, 4), encoding="utf-8", newline=""
    )
    documents, rejections = check_source(make("csv", "a.csv", id="id"), tmp_path, 4, 1)
    assert [row["document_id"] for row in documents] == ["1", "2", "3", "4"]
    assert (rejections[0].row, rejections[0].reason) == (4, "repeats the header")


def test_a_header_that_another_program_quotes_is_one(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"id",text\n1,a\n"id","text"\n2,b\nid,text\n')
    _, rejections = check_source(make("csv", "a.csv", id="id"), tmp_path, 2, 2)
    assert {each.reason for each in rejections} == {"repeats the header"}


@pytest.mark.parametrize("quote", [None, '"'])
def test_line_breaks_and_tabs_as_databases_write_them(tmp_path: Path, quote: str | None) -> None:
    (tmp_path / "a.tsv").write_text("id\ttext\n1\ta\\tb\\nc\\\\nd\\\ne\n")
    source = make("csv", "a.tsv", id="id", quote=quote, escape="\\")
    assert check_source(source, tmp_path, 1)[0][0]["text"] == "a\tb\nc\\nd\ne"


@pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "SEP=;", "sep=;;"])
def test_a_first_line_may_name_the_delimiter(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.csv").write_bytes(f"{line}\r\nid;text\r\n1;a, b\r\n".encode("utf-16"))
    documents, _ = check_source(make("csv", "a.csv", id="id"), tmp_path, 1)
    assert (documents[0]["text"], documents[0]["source_row"]) == ("a, b", 3)
    check_source(make("csv", "a.csv", id="id", skip_rows=1), tmp_path, 1)


def test_lines_before_the_header_and_comments_are_no_records(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        'Exported by "X\n\n#,"not closed\nid,text\n# it\'s "so"\n1,# a\n#2,b\n2,"x\n#y"\n#,"\n3,c'
    )
    source = make("csv", "a.csv", id="id", skip_rows=2, comment="#")
    documents, _ = check_source(source, tmp_path, 3)
    assert [(row["source_row"], row["text"]) for row in documents] == [
        (6, "# a"),
        (8, "x\n#y"),
        (11, "c"),
    ]


@pytest.mark.parametrize("escape", [None, "\\"])
def test_the_null_of_databases_is_no_value(tmp_path: Path, escape: str | None) -> None:
    (tmp_path / "a.tsv").write_text("id\ttext\tn\tcountry\n1\t\\N\t\\N\tNA\n\\N\tb\t1\tDE\n")
    source = make(
        "csv", "a.tsv", id="id", metadata={"n": "int", "country": "string"}, escape=escape
    )
    documents, rejections = check_source(source, tmp_path, 1, 1)
    assert [documents[0][name] for name in ("text", "n", "country")] == ["", None, "NA"]
    assert rejections[0].reason == "the id column 'id' is empty"


def test_spaces_around_the_names_of_columns_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id, text ,\n1,a,\n")
    check_source(make("csv", "a.csv", id="id"), tmp_path, 1)


@pytest.mark.parametrize(
    "options",
    [{"quote": "ab"}, {"escape": "é"}, {"comment": "\n"}, {"quote": ","}, {"skip_rows": -1}],
)
def test_a_dialect_that_cannot_be_one_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make("csv", "a.csv", **{"delimiter": ",", **options})


def test_a_header_that_quotes_spoil_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,"te"xt\n1,x\n')
    with pytest.raises(SourceError, match=r"a\.csv:1: a quoted cell goes on after the quote"):
        read(make("csv", "a.csv"), tmp_path)
