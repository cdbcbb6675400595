"""Turns the bytes of a text file into blocks of UTF-8: decompresses, finds the encoding, decodes.

`encoding: auto` reads the file once before it is parsed. A byte order mark decides at once; valid
UTF-8 is UTF-8, unless zero bytes or escapes say that it is UTF-16, UTF-32 or ISO 2022. Otherwise, if
most non-ASCII characters are valid UTF-8, the file is UTF-8 with broken records, which are rejected;
if not, `encodings.py` looks at a sample of the lines. The log says which and how sure that is; a file
of which too little can be told is refused.

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
from pydantic import field_validator

from embedding_pipelines.errors import SourceError
from embedding_pipelines.sources import encodings
from embedding_pipelines.sources.base import FileSource, ReadLog, SourceFile
from embedding_pipelines.sources.inputs import explain_errors
from embedding_pipelines.sources.parts import Border, Part, parts_between

BLOCK_BYTES = 4 * 2**20
MAX_RECORD_BYTES = 32 * 2**20  # a longer record is not read, so that memory stays bounded
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".xz": "xz", ".zip": "zip"}

_SAMPLE_BYTES = 16 * 2**20  # after the first byte that is not UTF-8: enough to guess the encoding
_HEAD_BYTES = 2**16
_MIXED = 5  # bytes of another encoding for each character of UTF-8 are no chance
_BLOCK_SAMPLE_BYTES = 8 * 2**10
_LINE_BYTES = 2_000  # of a long line, before and after what tells
_TELLING = re.compile(rb"[\x1b\x80-\xff]")
_NO_TRAIL = re.compile(rb"[\x00-\x1a\x1c-\x20,]")  # no second byte of a character in any encoding
_ESCAPED = 0xDC00  # byte b that does not decode becomes the lone surrogate U+DC00 + b
_ESCAPES = re.compile(f"([{chr(_ESCAPED)}-{chr(_ESCAPED + 0xFF)}]+)")
_MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32", "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32", "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8-sig", "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16", "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16", "utf-16-be"),
)
POINTER = b"version https://git-lfs.github.com/"
POINTER_REMEDY = "is a pointer of Git LFS to the data. Fetch them: git lfs pull"
# How files begin that are no text, and what to do with them.
_NO_TEXT = {
    b"\x1f\x8b": "is packed with gzip. Let its name end with .gz",
    b"\x28\xb5\x2f\xfd": "is packed with zstd. Let its name end with .zst",
    b"\xfd7zXZ\x00": "is packed with xz. Let its name end with .xz",
    b"PK\x03\x04": "is a zip archive or an Excel workbook. Let an archive's name end with .zip; save a "
    "workbook as CSV",
    b"\xd0\xcf\x11\xe0": "is an Excel workbook. Save it as CSV",
    b"PAR1\x15": "is a Parquet file. Set source.kind to parquet",
    b"SQLite format 3\x00": "is an SQLite database. Set source.kind to sql, and source.url to sqlite:/// with its path",
    POINTER: POINTER_REMEDY,
}
# Without a mark Python takes the little-endian codec; reversed, so that it comes last and stays.
_WITHOUT_MARK = {name: codec for _, name, codec in reversed(_MARKS)}


class TextSource(FileSource):
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
    if file.part is not None:
        log.encoding = file.part.encoding
        return Text(file, file.part.encoding, "utf-8", skip=0)
    head = next(_bytes(file), b"")
    for start, remedy in _NO_TEXT.items():
        if head.startswith(start):
            raise SourceError(f"{file.name}: the file {remedy}.")
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


def divide_text(
    file: SourceFile,
    encoding: str,
    part_bytes: int,
    log: ReadLog,
    borders: Callable[[Text], Iterator[Border]],
) -> list[SourceFile]:
    """A file in parts that begin where `borders` says. It stays whole where that is no place in its
    bytes: if it is compressed, or in another encoding than UTF-8."""
    if file.size_bytes <= part_bytes or _compression(file):
        return [file]
    text = open_text(file, encoding, log)
    if text.codec != "utf-8":
        return [file]
    parts = list(parts_between(borders(text), part_bytes))
    if len(parts) == 1:
        return [file]
    encoding, start = text.encoding, text.skip
    parts = [replace(part, text_start=start, encoding=encoding) for part in parts]
    return [replace(file, part=part) for part in parts]


def read_whole(text: Text) -> bytes:
    """All of a text that is one record. Raises SourceError for more than MAX_RECORD_BYTES."""
    parts, size = [], 0
    for block in text.blocks():
        parts.append(block)
        size += len(block)
        if size > MAX_RECORD_BYTES:
            raise SourceError(
                f"{text.file.name}: is longer than {MAX_RECORD_BYTES >> 20} MiB, and is read as a "
                "whole. Split it, or leave it out of source.path."
            )
    return b"".join(parts)


def start_of(file: SourceFile, size_bytes: int) -> bytes:
    """The first bytes of a file, decompressed."""
    return next(_bytes(file), b"")[:size_bytes]


def is_utf8(file: SourceFile) -> bool:
    try:
        return all(True for _ in codecs.iterdecode(_bytes(file), "utf-8"))
    except UnicodeDecodeError:
        return False


def _guess_encoding(file: SourceFile, log: ReadLog) -> str:
    head = next(_bytes(file), b"")
    if wide := encodings.guess_wide(head[:_HEAD_BYTES]):
        log.notes.append(f"{file.name}: has no byte order mark, and is read as {wide}")
        return wide
    with contextlib.suppress(UnicodeDecodeError):
        has_escapes = False
        for text in codecs.iterdecode(_bytes(file), "utf-8"):
            has_escapes = has_escapes or "\x1b" in text
        escaped = encodings.guess_escaped(_sample(file)) if has_escapes else None
        if escaped:
            log.notes.append(f"{file.name}: holds escapes of {escaped}, and is read as that")
        return escaped or "utf-8"
    good, bad = _count_characters(file)
    if good >= bad:
        log.notes.append(
            f"{file.name}: is UTF-8, but at least {bad} bytes are not; their records are rejected"
        )
        return "utf-8"
    guess = encodings.guess(_sample(file))
    if guess is None:
        raise SourceError(
            f"{file.name}: is text in no encoding that can be told from its bytes. Is it text? Then "
            "set source.encoding."
        )
    if guess.is_unsure:
        one, two = guess.readings
        others = f", {guess.rival} {two!r}" if guess.rival else ""
        raise SourceError(
            f"{file.name}: is not UTF-8, and holds too little to tell what it is: {guess.codec} "
            f"reads {one!r}{others}. Set source.encoding to the one that is right."
        )
    if guess.codec in encodings.LATIN and good * _MIXED >= bad:
        raise SourceError(
            f"{file.name}: is partly UTF-8, partly {guess.codec}. Write it in one encoding, or set "
            "source.encoding; with utf-8, the other records are rejected."
        )
    rival = f"; {guess.rival} would be next" if guess.rival else ""
    log.notes.append(
        f"{file.name}: is not UTF-8 and read as {guess.codec}, which is {guess.sureness}{rival}; "
        "if that is wrong, set source.encoding"
    )
    return guess.codec


def _count_characters(file: SourceFile) -> tuple[int, int]:
    """Non-ASCII characters that are valid UTF-8, and bytes that are not; of a part of the file."""
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
    return good, bad


def _sample(file: SourceFile) -> bytes:
    """Lines with bytes beyond ASCII, or escapes, from all over the beginning of the file."""
    lines: list[bytes] = []
    size = read = 0
    for block in _bytes(file):
        limit = encodings.SAMPLE_BYTES if len(block) < BLOCK_BYTES else size + _BLOCK_SAMPLE_BYTES
        at = 0
        while size < limit and (match := _TELLING.search(block, at)):
            first = max(at, match.start() - _LINE_BYTES)
            start = max(first, block.rfind(b"\n", first, match.start()) + 1)
            end = _NO_TRAIL.search(block, match.end() + _LINE_BYTES)
            at = end.start() if end else len(block)
            line_end = block.find(b"\n", match.end(), at)
            at = at if line_end < 0 else line_end
            lines.append(block[start:at])
            size += at - start
        read += len(block)
        if size >= encodings.SAMPLE_BYTES or (size and read >= _SAMPLE_BYTES):
            break
    return b"\n".join(lines)[: encodings.SAMPLE_BYTES]


def _bytes(file: SourceFile) -> Iterator[bytes]:
    """Blocks of the file, decompressed by its last suffix. Raises SourceError naming the file."""
    if file.part is not None:
        yield from _part_bytes(file, file.part)
        return
    compression = _compression(file)
    archive = f"the {compression} archive is cut short or damaged"
    with (
        explain_errors(file, archive if compression else "cannot be read"),
        _open(file, compression) as stream,
    ):
        while block := stream.read(BLOCK_BYTES):
            yield block


def _part_bytes(file: SourceFile, part: Part) -> Iterator[bytes]:
    """Blocks that end where those of the whole file do."""
    with explain_errors(file, "cannot be read"), file.path.open("rb") as stream:
        at = stream.seek(part.start)
        while block := stream.read(min(BLOCK_BYTES - at % BLOCK_BYTES, part.end - at)):
            yield block
            at += len(block)


def _compression(file: SourceFile) -> str | None:
    return COMPRESSED.get(PurePosixPath(file.name).suffix.lower())


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
