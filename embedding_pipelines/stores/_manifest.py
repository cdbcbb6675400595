"""Reads what a version of a Lance table names: its manifest, without the transaction that made it,
which names files that were replaced.

Lance's table format, "Manifest": sections, then the message with where they begin, then where the
message begins. A section begins with its length.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

TRANSACTION_SECTION = 21  # the message's field with the place of the transaction
FRAGMENT, FRAGMENT_ROWS = 2, 4  # fields of the message, and of a fragment
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
