"""PDF files: pages with text, without, and what cannot be read."""

import io
import random
from pathlib import Path

import pypdf
import pytest
from pypdf.generic import DictionaryObject, NameObject, NumberObject, StreamObject

from embedding_pipelines.errors import ConfigError, SourceError
from embedding_pipelines_tests.contracts_sources import check_source, make, read

IMAGE = "(an image)"


def write(path: Path, *pages: str, password: str | None = None, title: str = "") -> bytes:
    """A PDF whose pages hold a text, an image or, where it is empty, nothing."""
    writer = pypdf.PdfWriter()
    for words in pages:
        page = writer.add_blank_page(200, 200)
        font = DictionaryObject(
            {
                NameObject("/Type"): NameObject("/Font"),
                NameObject("/Subtype"): NameObject("/Type1"),
                NameObject("/BaseFont"): NameObject("/Helvetica"),
            }
        )
        image = StreamObject()
        image.set_data(b"\0")
        sizes = {"/Width": 1, "/Height": 1, "/BitsPerComponent": 8}
        image.update({NameObject(name): NumberObject(size) for name, size in sizes.items()})
        image[NameObject("/Subtype")] = NameObject("/Image")
        image[NameObject("/ColorSpace")] = NameObject("/DeviceGray")
        content = StreamObject()
        if words == IMAGE:
            content.set_data(b"/I Do")
        elif words:
            content.set_data(f"BT /F 12 Tf 10 100 Td ({words}) Tj ET".encode("latin-1"))
        items = DictionaryObject({NameObject("/I"): writer._add_object(image)})
        page[NameObject("/Resources")] = DictionaryObject(
            {NameObject("/Font"): DictionaryObject({NameObject("/F"): writer._add_object(font)})}
            | ({NameObject("/XObject"): items} if words == IMAGE else {})
        )
        page[NameObject("/Contents")] = writer._add_object(content)
    if title:
        writer.add_metadata({"/Title": title, "/Author": " "})
    if password is not None:
        writer.encrypt(password, owner_password="owner", algorithm="AES-256")
    stream = io.BytesIO()
    writer.write(stream)
    path.write_bytes(stream.getvalue())
    return stream.getvalue()


def test_each_page_with_text_is_a_document(tmp_path: Path) -> None:
    write(tmp_path / "a.pdf", "Red chair", "", "Oak table", title="Furniture")
    source = make("pdf", "*.pdf", metadata={"title": "string", "author": "string", "page": "int"})
    documents, _ = check_source(source, tmp_path, 2)
    assert documents == [
        {
            "document_id": f"a.pdf:{page}",
            "text": text,
            "source_file": "a.pdf",
            "source_row": page,
            "title": "Furniture",
            "author": None,
            "page": page,
        }
        for page, text in ((1, "Red chair"), (3, "Oak table"))
    ]


def test_pages_of_images_are_rejected_and_a_file_of_them_once(tmp_path: Path) -> None:
    write(tmp_path / "a.pdf", IMAGE, "words", IMAGE)
    write(tmp_path / "b.pdf", IMAGE, IMAGE, IMAGE)
    write(tmp_path / "c.pdf", "", "")
    _, rejections = check_source(make("pdf", "."), tmp_path, 1, 4)
    assert [(each.file, each.row) for each in rejections] == [
        ("a.pdf", 1), ("a.pdf", 3), ("b.pdf", 1), ("c.pdf", 1),
    ]  # fmt: skip
    reasons = [each.reason for each in rejections]
    assert all("holds no text; scanned?" in reason for reason in reasons[:3])
    assert reasons[3] == "holds no text"


def test_an_encrypted_file_is_rejected_unless_anybody_may_read_it(tmp_path: Path) -> None:
    write(tmp_path / "a.pdf", "secret", password="of the user")
    write(tmp_path / "b.pdf", "open", password="")
    (document,), (rejection,) = check_source(make("pdf", "."), tmp_path, 1, 1)
    assert document["text"] == "open"
    assert rejection.reason == "is encrypted; save it without a password"


@pytest.mark.parametrize("content", [b"", b"%PDF-1.7\n", b"\0" * 99, b"<html>no</html>"])
def test_what_is_no_pdf_is_rejected(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pdf").write_bytes(content)
    _, (rejection,) = check_source(make("pdf", "a.pdf"), tmp_path, 0, 1)
    assert rejection.reason.startswith("is no PDF that can be read (")


def test_damaged_bytes_end_in_documents_or_rejections(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.pdf", "Red chair", IMAGE, "Oak table", title="Furniture")
    chance = random.Random(4711)
    source = make("pdf", "a.pdf", metadata={"title": "string", "page": "int"})
    for _ in range(150):
        damaged = bytearray(whole[: chance.choice([len(whole), chance.randrange(len(whole))])])
        for _ in range(chance.randrange(1, 30)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        (tmp_path / "a.pdf").write_bytes(damaged)
        documents, rejections, _ = read(source, tmp_path)
        assert documents or rejections


def test_nothing_is_printed_of_what_is_mended(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = write(tmp_path / "a.pdf", "Red chair")
    (tmp_path / "a.pdf").write_bytes(
        b"junk before\n" + whole.replace(b"startxref\n", b"startxref\n9")
    )
    documents, _, _ = read(make("pdf", "a.pdf"), tmp_path)
    assert [row["text"] for row in documents] == ["Red chair"]
    assert capfd.readouterr() == ("", "")


def test_a_column_that_there_is_not_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a.pdf", "Red chair")
    with pytest.raises(SourceError, match="'titel' is missing; found 'title', 'author', 'text'"):
        read(make("pdf", "a.pdf", text="titel"), tmp_path)


def test_without_the_package_its_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.pdf", "Red chair")
    monkeypatch.setitem(__import__("sys").modules, "pypdf", None)
    with pytest.raises(ConfigError, match=r"pip install 'embedding-pipelines\[pdf\]'"):
        read(make("pdf", "a.pdf"), tmp_path)
