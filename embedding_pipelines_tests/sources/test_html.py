"""HTML files: a page each, in the encoding that it names."""

import codecs
import gzip
from pathlib import Path

import pytest

from embedding_pipelines.errors import SourceError
from embedding_pipelines_tests.contracts_sources import check_source, make, read

PAGE = """<?xml version="1.0"?>
<html><head>{meta}<title>Caf\u00e9 &amp;\n more</title><META NAME="Description" content=" of chairs "></head>
<body><script>no()</script><p>na\u00efve <b>w</b>ords</p><title>another</title></body></html>"""


def test_a_file_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(PAGE.format(meta=""))
    (tmp_path / "b.htm.gz").write_bytes(gzip.compress(b"a fragment, <i>no</i> page"))
    (tmp_path / "c.html").write_bytes(b"")
    source = make("html", ".", metadata=["title", "description"])
    documents, _ = check_source(source, tmp_path, 3)
    assert documents[0] == {
        "document_id": "a.html",
        "text": "Caf\u00e9 & more\nna\u00efve words\nanother",
        "source_file": "a.html",
        "source_row": 1,
        "title": "Caf\u00e9 & more",
        "description": "of chairs",
    }
    assert documents[1]["text"] == "a fragment, no page"
    assert documents[1]["title"] is documents[2]["title"] is None


@pytest.mark.parametrize(
    ("codec", "meta", "encoding"),
    [
        ("utf-8", "<meta charset=latin1>", "utf-8"),  # as its bytes show
        ("cp1252", '<meta charset="ISO-8859-1">', "cp1252"),
        ("iso8859-15", "<meta http-equiv=Content-Type content='text/html; charset=iso-8859-15'>",
         "iso8859-15"),
        ("utf-16", "", "utf-16"),
        ("utf-8-sig", '<meta charset="utf-8">', "utf-8-sig"),
    ],
)  # fmt: skip
def test_a_page_is_read_in_the_encoding_that_it_names(
    codec: str, meta: str, encoding: str, tmp_path: Path
) -> None:
    page = PAGE.format(meta=meta).replace("ords", "ords, d\u00e9j\u00e0 vu")
    (tmp_path / "a.html").write_bytes(page.encode(codec))
    documents, _, (log,) = read(make("html", "a.html"), tmp_path)
    assert "na\u00efve words, d\u00e9j\u00e0 vu" in documents[0]["text"]
    assert codecs.lookup(log.encoding or "").name == codecs.lookup(encoding).name


@pytest.mark.parametrize(
    "name", ["undefined", "base64", "rot13", "idna", "punycode", "unicode_escape", "no-such"]
)
def test_a_page_that_names_no_encoding_of_pages_is_detected(tmp_path: Path, name: str) -> None:
    words = (
        "Il a d\u00e9j\u00e0 \u00e9t\u00e9 dit que la for\u00eat br\u00fble, \u00e0 c\u00f4t\u00e9 du ch\u00e2teau. "
        * 9
    )
    (tmp_path / "a.html").write_bytes(f"<meta charset={name}><p>{words}</p>".encode("cp1252"))
    documents, _, _ = read(make("html", "a.html"), tmp_path)
    assert words.strip() in documents[0]["text"]


def test_a_page_with_broken_bytes_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_bytes(b"<p>caf\xff</p>")
    _, (rejection,) = check_source(make("html", "a.html", encoding="utf-8"), tmp_path, 0, 1)
    assert (rejection.reason, rejection.raw) == ("is not valid utf-8", b"<p>caf\xff</p>")


def test_a_file_that_is_no_page_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.html").write_bytes(b"PAR1\x15 and more")
    with pytest.raises(SourceError, match=r"is a Parquet file. Set source.kind to parquet"):
        read(make("html", "a.html"), tmp_path)
    (tmp_path / "a.html").write_text("<p>long</p>")
    monkeypatch.setattr("embedding_pipelines.sources.text.MAX_RECORD_BYTES", 5)
    with pytest.raises(SourceError, match="is read as a whole"):
        read(make("html", "a.html"), tmp_path)
