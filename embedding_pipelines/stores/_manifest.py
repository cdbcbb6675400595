"""Reads what a version of a Lance table names: its manifest, without the transaction that made it,
which names files that were replaced.

Lance's table format, "Manifest": sections, then the message with where they begin, then where the
message begins. A section begins with its length.
"""

import struct
from pathlib import Path

TRANSACTION_SECTION = 21  # the message's field with the place of the transaction
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
