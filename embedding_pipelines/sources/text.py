"""Turns the bytes of a text file into blocks of UTF-8: decompresses, finds the encoding, decodes.

`encoding: auto` reads the file once before it is parsed. A byte order mark decides at once; valid
UTF-8 is UTF-8. Otherwise, if most non-ASCII characters are valid UTF-8, the file is UTF-8 with
broken records, which are rejected; if not, it is read as cp1252. The log says so in both cases.

Bytes that do not decode become bytes that no UTF-8 holds (encoded surrogates). So one check finds
them in any encoding, the record is rejected, and `Text.raw` gives back its original bytes. The five
bytes that cp1252 leaves undefined are rejected in this way, too.
"""

import codecs
import contextlib
import itertools
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pydantic import field_validator

from embedding_pipelines.errors import SourceError
from embedding_pipelines.sources.base import ReadLog, Source, SourceFile
from embedding_pipelines.sources.paths import explain_errors

BLOCK_BYTES = 4 * 2**20
MAX_RECORD_BYTES = 32 * 2**20  # a longer record is not read, so that memory stays bounded
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".xz": "xz", ".zip": "zip"}

_SAMPLE_BYTES = 16 * 2**20  # after the first byte that is not UTF-8: enough to guess the encoding
_ESCAPED = 0xDC00  # byte b that does not decode becomes the lone surrogate U+DC00 + b
_ESCAPES = re.compile(f"([{chr(_ESCAPED)}-{chr(_ESCAPED + 0xFF)}]+)")
_MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32", "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32", "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8-sig", "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16", "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16", "utf-16-be"),
)
# Without a mark Python takes the little-endian codec; reversed, so that it comes last and stays.
_WITHOUT_MARK = {name: codec for _, name, codec in reversed(_MARKS)}


class TextSource(Source):
    """A source whose files are text. `encoding` is "auto" or the name of a Python codec."""

    encoding: str = "auto"

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, value: str) -> str:
        if value == "auto":
            return value
        try:
            "".encode(value)  # LookupError also for codecs that are not text, such as base64
            return codecs.lookup(value).name
        except (LookupError, UnicodeError):
            raise ValueError(
                f"{value!r} is no text encoding; use auto, utf-8, utf-16, cp1252 …"
            ) from None


def list_suffixes(*suffixes: str) -> tuple[str, ...]:
    """These file name endings, each plain and with those of compressed files."""
    return tuple(suffix + end for suffix in suffixes for end in ("", *COMPRESSED))


@dataclass(frozen=True)
class Text:
    """A text file to read once as UTF-8.

    encoding: its name in logs and messages; codec: that of the bytes after the first `skip`, which
    hold the byte order mark.
    """

    file: SourceFile
    encoding: str
    codec: str
    skip: int

    def blocks(self) -> Iterator[bytes]:
        """UTF-8 in blocks of about BLOCK_BYTES, which may end within a character."""
        skip = self.skip
        decoder = codecs.getincrementaldecoder(self.codec)(_ESCAPE)
        for block in itertools.chain(_bytes(self.file), [b""]):
            part = block[skip:]
            skip = max(0, skip - len(block))
            if self.codec == "utf-8":
                yield part
            else:
                yield decoder.decode(part, final=not block).encode("utf-8", "surrogatepass")

    def raw(self, record: bytes) -> bytes:
        """The original bytes of a slice of the blocks."""
        if self.codec == "utf-8":
            return record
        raw = bytearray()
        for at, part in enumerate(_ESCAPES.split(record.decode("utf-8", "surrogatepass"))):
            if at % 2:  # `split` returns text and escapes by turns
                raw += bytes(ord(character) - _ESCAPED for character in part)
            else:
                raw += part.encode(self.codec)
        return bytes(raw)


def open_text(file: SourceFile, encoding: str, log: ReadLog) -> Text:
    """Find the encoding of `file` and write it into the log. Raises SourceError."""
    head = next(_bytes(file), b"")
    mark, name, codec = next((mark for mark in _MARKS if head.startswith(mark[0])), (b"", "", ""))
    if mark and encoding in ("auto", name, codec):
        text = Text(file, name, codec, len(mark))
    elif encoding == "auto":
        guess = _guess_encoding(file, log)
        text = Text(file, guess, guess, skip=0)
    else:
        text = Text(file, encoding, _WITHOUT_MARK.get(encoding, encoding), skip=0)
    log.encoding = text.encoding
    return text


def _guess_encoding(file: SourceFile, log: ReadLog) -> str:
    with contextlib.suppress(UnicodeDecodeError):
        for _ in codecs.iterdecode(_bytes(file), "utf-8"):
            pass
        return "utf-8"
    decoder = codecs.getincrementaldecoder("utf-8")(_ESCAPE)
    good = bad = size = 0
    for block in itertools.chain(_bytes(file), [b""]):
        text = decoder.decode(block, final=not block)
        escapes = sum(map(len, _ESCAPES.findall(text)))
        bad += escapes
        good += len(text) - len(text.encode("ascii", "ignore")) - escapes
        size += len(block) if bad else 0
        if size >= _SAMPLE_BYTES:
            break
    if good >= bad:
        log.notes.append(
            f"{file.name}: is UTF-8, but at least {bad} bytes are not; their records are rejected"
        )
        return "utf-8"
    log.notes.append(
        f"{file.name}: is not UTF-8, so it is read as cp1252; if that is wrong, set source.encoding"
    )
    return "cp1252"


def _bytes(file: SourceFile) -> Iterator[bytes]:
    """Blocks of the file, decompressed by its last suffix. Raises SourceError naming the file."""
    compression = COMPRESSED.get(file.path.suffix.lower())
    archive = f"the {compression} archive is cut short or damaged"
    with (
        explain_errors(file, archive if compression else "cannot be read"),
        _open(file, compression) as stream,
    ):
        while block := stream.read(BLOCK_BYTES):
            yield block


@contextlib.contextmanager
def _open(file: SourceFile, compression: str | None) -> Iterator[Any]:
    """Something to read decompressed bytes from; damage raises an OSError, here or there."""
    if compression not in ("xz", "zip"):
        with pa.input_stream(str(file.path), compression=compression) as stream:
            yield stream
        return
    try:
        if compression == "xz":
            with lzma.open(file.path) as stream:
                yield stream
            return
        with zipfile.ZipFile(file.path) as archive:
            members = [member for member in archive.infolist() if _is_content(member)]
            if len(members) != 1:
                raise SourceError(
                    f"{file.name}: the archive holds {len(members)} files, not one. Unpack it and "
                    "name the folder."
                )
            with archive.open(members[0]) as stream:
                yield stream
    except (EOFError, lzma.LZMAError, zlib.error, zipfile.BadZipFile) as error:
        raise OSError(str(error)) from error
    except (RuntimeError, NotImplementedError) as error:  # as zipfile tells what it cannot open
        raise SourceError(
            f"{file.name}: the archive cannot be opened ({error}). Unpack it."
        ) from error


def _is_content(member: zipfile.ZipInfo) -> bool:
    return not member.is_dir() and not member.filename.startswith("__MACOSX/")


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    data = error.object[error.start : error.end]
    return "".join(chr(_ESCAPED + byte) for byte in data), error.end


_ESCAPE = "embedding_pipelines.escape"
codecs.register_error(_ESCAPE, _escape)
