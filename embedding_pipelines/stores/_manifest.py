"""Reads what a version of a Lance table names: its manifest, without the transaction that made it,
which names files that were replaced.

Lance's table format, "Manifest": sections, then the message with where they begin, then where the
message begins. A section begins with its length.
"""

import re
import struct
from collections.abc import Iterator
from pathlib import Path

TRANSACTION_SECTION = 21  # the message's field with the place of the transaction
FRAGMENT, FRAGMENT_ROWS = 2, 4  # fields of the message, and of a fragment
FRAGMENT_FILES, FRAGMENT_OVERLAYS = (2, 6, 8, 10), 11  # a path is the first field of each file
PATH = 1
BASE_PATHS, READER_FEATURES = 18, 9  # fields of the message
# Deletions, stable row ids, the second format, a configuration, versions without transaction files.
KNOWN_FEATURES = 1 | 2 | 4 | 8 | 32
FIXED_BYTES = {1: 8, 5: 4}  # of a value, by the kind of its field
FOOTER_BYTES = 16


def named_by(manifest: Path) -> bytes:
    """The bytes in which the names of a version's files stand; none without the manifest."""
    try:
        content = manifest.read_bytes()
    except FileNotFoundError:
        return b""
    if len(content) < FOOTER_BYTES:
        return content
    (begin,) = struct.unpack("<Q", content[-16:-8])
    place = _number(content[begin + 4 : -FOOTER_BYTES], TRANSACTION_SECTION)
    if place is None or place + 4 > begin:
        return content
    (size,) = struct.unpack("<I", content[place : place + 4])
    return content[:place] + content[place + 4 + size :]


def rows_of_fragments(manifest: Path) -> list[int]:
    """The rows of each fragment of a version, those that were deleted included."""
    content = manifest.read_bytes()
    (begin,) = struct.unpack("<Q", content[-16:-8])
    (size,) = struct.unpack("<I", content[begin : begin + 4])
    fragments = [
        value
        for field, value in _fields(content[begin + 4 : begin + 4 + size])
        if field == FRAGMENT
    ]
    return [
        sum(
            rows
            for field, rows in _fields(each)
            if field == FRAGMENT_ROWS and isinstance(rows, int)
        )
        for each in fragments
        if isinstance(each, bytes)
    ]


def leads_elsewhere(manifest: Path) -> bool:
    """Whether a version names files outside its table's folder, or what it names cannot be told by
    this version of the package: base paths, paths that are more than a name, unknown features."""
    content = manifest.read_bytes()
    try:
        (begin,) = struct.unpack("<Q", content[-16:-8])
        (size,) = struct.unpack("<I", content[begin : begin + 4])
        message = content[begin + 4 : begin + 4 + size]
        for field, value in _strict_fields(message):
            if field == BASE_PATHS or (field == READER_FEATURES and int(value) & ~KNOWN_FEATURES):
                return True
            if field == FRAGMENT and not all(map(_is_name, _paths_of_fragment(_bytes(value)))):
                return True
    except (struct.error, ValueError, TypeError):
        return True
    return False


def _paths_of_fragment(fragment: bytes) -> Iterator[bytes]:
    for field, value in _strict_fields(fragment):
        if field in FRAGMENT_FILES:
            yield from (
                _bytes(path) for name, path in _strict_fields(_bytes(value)) if name == PATH
            )
        elif field == FRAGMENT_OVERLAYS:
            raise ValueError("files over other files are none that this package writes")


def _is_name(path: bytes) -> bool:
    return re.fullmatch(rb"[A-Za-z0-9_-][A-Za-z0-9_.-]*", path) is not None


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("it is a number")
    return value


def _strict_fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """As `_fields`. Raises ValueError for what other readers may take in another way."""
    at = 0
    while at < len(message):
        key, after = _read_varint(message, at)
        if key & 7 not in (0, 2, *FIXED_BYTES) or after - at > 10:
            raise ValueError("a field is of a kind that is not written any more")
        if key & 7 == 2:
            size, after = _read_varint(message, after)
            after += size
        elif key & 7 == 0:
            _, after = _read_varint(message, after)
        else:
            after += FIXED_BYTES[key & 7]
        if after > len(message):
            raise ValueError("a field ends behind its message")
        yield from _fields(message[at:after])
        at = after


def varint(number: int) -> bytes:
    """A whole number as protobuf writes it: seven bits a byte, the lowest first."""
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def _number(message: bytes, field: int) -> int | None:
    """A field of a protobuf message that is a whole number; None if it has none, or holds what is
    not known here."""
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        kind = key & 7
        if kind not in (0, 2):
            return None
        value, at = _read_varint(message, at)
        if kind == 2:
            at += value
        elif key >> 3 == field:
            return value
    return None


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message and their values: whole numbers, or bytes."""
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _read_varint(message, at)
            yield key >> 3, value
            continue
        size = FIXED_BYTES.get(kind, 0)
        if kind == 2:
            size, at = _read_varint(message, at)
        yield key >> 3, message[at : at + size]
        at += size


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """A number and where the next one begins."""
    number = shift = 0
    while at < len(message):
        byte = message[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            break
    return number, at
