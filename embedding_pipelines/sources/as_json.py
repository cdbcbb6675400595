"""Makes of the objects that a database driver or a YAML parser returns what a JSON record holds:
texts, booleans, lists and objects. A number or a time becomes the text that means it."""

import datetime
import decimal
import ipaddress
import math
import re
import uuid
from typing import Any

from embedding_pipelines.sources.json_records import NotFinite

_ZEROS = re.compile(r"\.0+$")


def as_json(value: Any) -> Any:
    """The value as `json_records` would return it. Raises ValueError with the reason, after
    "column … ", if it is wrong; TypeError if it is of a type that no text means."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _whole(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float | decimal.Decimal):
        return _number(value)
    if isinstance(value, datetime.datetime):
        return _time(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        return _decoded(bytes(value))
    if isinstance(value, list | tuple):
        return [as_json(part) for part in value]
    if isinstance(value, dict):
        return {str(key): as_json(part) for key, part in value.items()}
    if isinstance(value, uuid.UUID | ipaddress._IPAddressBase):
        return str(value)
    raise TypeError(f"is {type(value).__name__}, not text or a number")


def _whole(text: str) -> str:
    """SQLite hands on texts that are no UTF-8; `sources/sql.py` lets their bytes pass."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("is not valid UTF-8") from None
    return text


def _number(value: float | decimal.Decimal) -> str:
    if not math.isfinite(value):
        return NotFinite("NaN" if math.isnan(value) else "inf" if value > 0 else "-inf")
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    return _ZEROS.sub("", f"{value:f}")


def _time(value: datetime.datetime) -> str:
    if value.tzinfo is None:
        return value.isoformat(" ")
    try:
        return value.astimezone(datetime.UTC).replace(tzinfo=None).isoformat(" ") + "Z"
    except OverflowError:
        raise ValueError("is beyond the years 1 to 9999") from None


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ValueError("is binary data, not text") from None
