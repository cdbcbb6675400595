"""PDF files: a document for each page that holds text."""

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pyarrow as pa

from embedding_pipelines.extras import need, version_of
from embedding_pipelines.sources.base import FileSource, ReadLog, SourceFile
from embedding_pipelines.sources.fields import Fields
from embedding_pipelines.sources.inputs import explain_errors

if TYPE_CHECKING:
    from pypdf import PageObject, PdfReader

_VERSION = 1  # raise it when the same file gives other documents
_SCANNED = "holds no text; scanned? Have its text recognized (OCR)"


class Pdf(FileSource):
    """One document per page; `source_row` is the page. Its columns are `text`, `page` and, of the
    file, `title` and `author`.

    A page of images alone is rejected, an empty one is none. A file of which no page can be read,
    or holds text, is rejected as one record.
    """

    kind: Literal["pdf"] = "pdf"
    suffixes: ClassVar[tuple[str, ...]] = (".pdf",)
    usual_metadata: ClassVar[Mapping[str, str]] = {"title": "string", "page": "int"}

    @property
    def reader(self) -> str:
        need("pypdf", "pdf")
        return f"pdf/{_VERSION};pypdf={version_of('pypdf')}"

    def read(self, file: SourceFile, log: ReadLog) -> Iterator[pa.RecordBatch]:
        """See Source.read. Raises ConfigError if pypdf is not installed."""
        pypdf = need("pypdf", "pdf")
        _silence()
        fields = Fields(self, file, log, lambda _: b"")
        with explain_errors(file, "cannot be read"), file.path.open("rb") as stream:
            try:
                reader = pypdf.PdfReader(stream)
                problem = _lock(reader, pypdf)
                pages = 0 if problem else len(reader.pages)
                about = {} if problem else _about(reader)
            except Exception as error:  # noqa: BLE001  # whatever damaged bytes make of it
                problem, pages, about = f"is no PDF that can be read ({_line(error)})", 0, {}
            scanned: list[int] = []  # pages of images alone
            readable = damaged = 0
            for number in range(1, pages + 1):
                try:
                    page = reader.pages[number - 1]
                    text = page.extract_text().strip()
                    is_scan = not text and _has_image(page)
                except Exception as error:  # noqa: BLE001  # as above
                    reason = f"the page cannot be read ({_line(error)})"
                    yield from fields.reject(number, reason, None)
                    damaged += 1
                    continue
                if text:
                    readable += 1
                    record = {**about, "text": text, "page": str(number)}
                    yield from fields.add(number, record, None, len(text))
                elif is_scan:
                    scanned.append(number)
            if not problem and not readable and not damaged:
                problem, scanned = _SCANNED if scanned else "holds no text", []
            if problem:
                yield from fields.reject(1, problem, None)
            for number in scanned:
                yield from fields.reject(number, _SCANNED, None)
        yield from fields.finish()


def _lock(reader: "PdfReader", pypdf: Any) -> str:
    """Why an encrypted file cannot be opened; empty if it can, as those without a password for
    readers."""
    if not reader.is_encrypted:
        return ""
    try:
        if reader.decrypt(""):
            return ""
    except pypdf.errors.DependencyError as error:
        return f"is encrypted, which takes another package ({_line(error)})"
    return "is encrypted; save it without a password"


def _about(reader: "PdfReader") -> dict[str, str | None]:
    about = reader.metadata
    return {
        "title": _plain(about.title if about else None),
        "author": _plain(about.author if about else None),
    }


def _plain(text: object) -> str | None:
    return str(text).strip() or None if text is not None else None


def _has_image(page: "PageObject") -> bool:
    resources = page.get("/Resources")
    inner = resources.get_object().get("/XObject") if resources is not None else None
    items = inner.get_object().values() if inner is not None else ()
    return any(item.get_object().get("/Subtype") == "/Image" for item in items)


def _silence() -> None:
    """What pypdf mends while it reads it logs; without a handler Python prints that to stderr."""
    logger = logging.getLogger("pypdf")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
