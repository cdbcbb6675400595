"""Whether something quotes a text that is to be forgotten: a value, a row, a JSON record."""

import json
from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

LEAST_CHARACTERS = 16  # shorter texts may be words of anybody's: only columns of texts tell them
EXCERPT = 40  # the shortest beginning of a text that errors and notes quote


class Needles:
    """Texts to look for."""

    def __init__(self, texts: Collection[str]) -> None:
        self.texts = pa.array(sorted(texts), pa.string())
        self._excerpts: dict[str, set[str]] = {}  # by their first characters
        for text in texts:
            if len(text) >= LEAST_CHARACTERS:
                excerpt = text[:EXCERPT]
                for part in (excerpt, repr(excerpt)[1:-1]):  # as notes quote it
                    self._excerpts.setdefault(part[:LEAST_CHARACTERS], set()).add(part)

    def are_in(self, text: str) -> bool:
        """Whether a value holds one of the texts that are not short, or quotes its beginning."""
        if not self._excerpts:
            return False
        for at in range(len(text) - LEAST_CHARACTERS + 1):
            parts = self._excerpts.get(text[at : at + LEAST_CHARACTERS])
            if parts is not None and any(text.startswith(part, at) for part in parts):
                return True
        return False

    def are_quoted(self, record: Any) -> bool:
        """Whether a value of a JSON record holds one."""
        return any(map(self.are_in, strings(record)))

    def are_in_rows(self, batch: pa.RecordBatch) -> bool:
        """Whether a row's text is one of them, short or not, or its record's bytes hold one."""
        for column, kind in zip(batch.columns, batch.schema.types, strict=True):
            if pa.types.is_string(kind):
                if pc.any(pc.is_in(column, self.texts), min_count=0).as_py():
                    return True
            elif pa.types.is_binary(kind):
                values = (value for value in column.to_pylist() if value)
                if any(self.are_in(value.decode("utf-8", "replace")) for value in values):
                    return True
        return False


def json_texts(text: str) -> Iterator[str]:
    """The values within JSON or JSON Lines, whose keys are nobody's texts; else the text itself."""
    if text[:1] not in ("{", "["):
        yield text
        return
    try:
        yield from strings(json.loads(text))
    except (ValueError, RecursionError):
        for line in text.splitlines():
            try:
                yield from strings(json.loads(line))
            except (ValueError, RecursionError):
                yield line


def strings(value: Any) -> Iterator[str]:
    """All texts in a JSON value, but for the keys of objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from strings(part)
