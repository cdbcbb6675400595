"""HTML files: a page each, without its markup."""

import codecs
import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import pyarrow as pa

from embedding_pipelines import markup
from embedding_pipelines.extras import version_of
from embedding_pipelines.sources.base import ReadLog, SourceFile
from embedding_pipelines.sources.fields import Fields
from embedding_pipelines.sources.text import (
    TextSource,
    is_utf8,
    list_suffixes,
    open_text,
    read_whole,
    start_of,
)

_DECLARED = re.compile(rb"<meta[^>]+charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_HEAD_BYTES = 4096  # a page names its encoding in the first of them, if it does
_SAME = {"iso8859-1": "cp1252", "ascii": "cp1252"}  # what browsers read under these names
_NO_PAGES = ("idna", "punycode", "unicode-escape", "raw-unicode-escape")  # Python's own


class Html(TextSource):
    """One document per file, whose id is the file's name; its columns are `text`, `title` and
    `description`. A page that is no UTF-8 is read in the encoding that it names."""

    kind: Literal["html"] = "html"
    suffixes: ClassVar[tuple[str, ...]] = list_suffixes(".html", ".htm", ".xhtml")
    usual_metadata: ClassVar[Mapping[str, str]] = {"title": "string"}

    @property
    def reader(self) -> str:
        return f"html/{markup.VERSION};selectolax={version_of('selectolax')}"

    def read(self, file: SourceFile, log: ReadLog) -> Iterator[pa.RecordBatch]:
        """See Source.read."""
        encoding = self.encoding
        if encoding == "auto" and not is_utf8(file):
            encoding = _declared(start_of(file, _HEAD_BYTES)) or encoding
        text = open_text(file, encoding, log)
        data = read_whole(text)
        fields = Fields(self, file, log, text.raw, whole_file=True)
        try:
            page = data.decode()
        except UnicodeDecodeError:
            yield from fields.reject(1, f"is not valid {text.encoding}", data)
        else:
            title, description = markup.head_of(page)
            record = {"text": markup.text_of(page), "title": title, "description": description}
            yield from fields.add(1, record, data, len(data))
        yield from fields.finish()


def _declared(head: bytes) -> str | None:
    """The encoding that a page names; None for one that there is not, and for UTF-8, which its bytes
    have shown that it is not."""
    match = _DECLARED.search(head)
    if match is None:
        return None
    # LookupError also for codecs that are not text; broken templates write `undefined`.
    with contextlib.suppress(LookupError, UnicodeError):
        name = codecs.lookup(match[1].decode("ascii")).name
        "".encode(name)
        return None if name.startswith("utf") or name in _NO_PAGES else _SAME.get(name, name)
    return None
