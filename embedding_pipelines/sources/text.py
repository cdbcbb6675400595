"""From the bytes of a text file to blocks of UTF-8: compression and encoding, nothing of the
format.

`encoding: auto` reads the file once before it is parsed. Valid UTF-8 is UTF-8, a byte order mark
decides at once. Otherwise, if most non-ASCII characters are valid UTF-8 the file is UTF-8 with
broken records, which are refused; if not, it is read as cp1252, and the log says so.

What does not decode becomes bytes that are no valid UTF-8 (encoded surrogates), so one check finds
it in any encoding, the record is refused, and `Text.raw` gives back the bytes as they stood. The
five bytes that cp1252 leaves undefined are refused in this way, too.
"""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
from pydantic import field_validator

from embedding_pipelines.errors import SourceError
from embedding_pipelines.sources.base import ReadLog, Source, SourceFile

BLOCK_BYTES = 4 * 2**20
MAX_RECORD_BYTES = 32 * 2**20  # memory is bounded: a longer record is not read
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}

_JUDGED_BYTES = (
    16 * 2**20
)  # after the first byte that is not UTF-8, the encoding is judged on this much
_ESCAPED = 0xDC00  # byte b that does not decode becomes the lone surrogate U+DC00 + b
_ESCAPES = re.compile(f"([{chr(_ESCAPED)}-{chr(_ESCAPED + 0xFF)}]+)")
_MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32", "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32", "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8-sig", "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16", "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16", "utf-16-be"),
)
_WITHOUT_MARK = {
    name: codec for _, name, codec in reversed(_MARKS)
}  # little-endian, as Python takes it


class TextSource(Source):
    """A source whose files are text. `encoding` is "auto" or the name of a Python codec."""

    encoding: str = "auto"

    @field_validator("encoding")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value == "auto":
            return value
        try:
            "".encode(value)  # LookupError also for codecs that are not text, such as base64
            return codecs.lookup(value).name
        except (LookupError, UnicodeError):
            raise ValueError(
                f"{value!r} is no text encoding; use auto, utf-8, utf-16, cp1252 …"
            ) from None


@dataclass(frozen=True)
class Text:
    """A text file that is open for reading once as UTF-8.

    encoding: for the log and for messages; codec: of the bytes after the first `skip`, those of the
    byte order mark.
    """

    file: SourceFile
    encoding: str
    codec: str
    skip: int

    def blocks(self) -> Iterator[bytes]:
        """UTF-8 in blocks of about BLOCK_BYTES that may end anywhere, even within a character."""
        decoder = (
            None if self.codec == "utf-8" else codecs.getincrementaldecoder(self.codec)(_ESCAPE)
        )
        skip = self.skip
        for block in _bytes(self.file):
            start, skip = min(skip, len(block)), max(0, skip - len(block))
            if decoder is None:
                yield block[start:]
            else:
                yield decoder.decode(block[start:]).encode("utf-8", "surrogatepass")
        if decoder is not None:
            yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")

    def raw(self, record: bytes) -> bytes:
        """A slice of the blocks as it stood in the file."""
        if self.codec == "utf-8":
            return record
        parts = _ESCAPES.split(record.decode("utf-8", "surrogatepass"))
        return b"".join(
            bytes(ord(character) - _ESCAPED for character in part)
            if at % 2
            else part.encode(self.codec)
            for at, part in enumerate(parts)
        )


def open_text(file: SourceFile, encoding: str, log: ReadLog) -> Text:
    """Finds out how `file` is encoded and writes it into the log. Raises SourceError."""
    head = next(_bytes(file), b"")
    marked = next((mark for mark in _MARKS if head.startswith(mark[0])), None)
    if encoding == "auto":
        if marked is not None:
            text = Text(file, marked[1], marked[2], len(marked[0]))
        else:
            text = Text(file, *_judge(file, log), skip=0)
    elif marked is not None and encoding in (marked[1], marked[2]):
        text = Text(file, marked[1], marked[2], len(marked[0]))
    else:
        text = Text(file, encoding, _WITHOUT_MARK.get(encoding, encoding), skip=0)
    log.encoding = text.encoding
    return text


def _judge(file: SourceFile, log: ReadLog) -> tuple[str, str]:
    if _is_utf8(file):
        return "utf-8", "utf-8"
    decoder = codecs.getincrementaldecoder("utf-8")(_ESCAPE)
    good, bad, judged = 0, 0, 0
    for block in _bytes(file):
        text = decoder.decode(block)
        escapes = _escapes(text)
        bad += escapes
        good += len(text) - len(text.encode("ascii", "ignore")) - escapes
        judged += len(block) if bad else 0
        if judged >= _JUDGED_BYTES:
            break
    else:
        bad += len(decoder.decode(b"", final=True))
    if good >= bad:
        log.notes.append(
            f"{file.name}: UTF-8, but at least {bad} bytes are not; their records are refused"
        )
        return "utf-8", "utf-8"
    log.notes.append(
        f"{file.name}: not UTF-8, read as cp1252; if that is wrong, set source.encoding"
    )
    return "cp1252", "cp1252"


def _is_utf8(file: SourceFile) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for block in _bytes(file):
            if decoder.getstate()[0] or not block.isascii():
                decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _escapes(text: str) -> int:
    """How many characters of the text stand for bytes that did not decode."""
    return sum(map(len, _ESCAPES.findall(text)))


def _bytes(file: SourceFile) -> Iterator[bytes]:
    """Blocks of the file, decompressed by its last suffix. Raises SourceError naming the file."""
    compression = COMPRESSED.get(file.path.suffix.lower())
    try:
        with pa.input_stream(str(file.path), compression=compression) as stream:
            while block := stream.read(BLOCK_BYTES):
                yield block
    except FileNotFoundError as error:
        raise SourceError(f"{file.name}: the file is gone. Put it back, or run again.") from error
    except PermissionError as error:
        raise SourceError(
            f"{file.name}: permission denied. Let this user read the file."
        ) from error
    except OSError as error:
        what = (
            f"the {compression} archive is cut short or damaged"
            if compression
            else "cannot be read"
        )
        raise SourceError(
            f"{file.name}: {what} ({error}). Put a whole copy in its place."
        ) from error


def _escape(error: UnicodeError) -> tuple[str, int]:
    if isinstance(error, UnicodeDecodeError):
        return "".join(
            chr(_ESCAPED + byte) for byte in error.object[error.start : error.end]
        ), error.end
    raise error


_ESCAPE = "embedding_pipelines.escape"
codecs.register_error(_ESCAPE, _escape)
