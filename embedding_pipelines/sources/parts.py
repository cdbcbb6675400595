"""How a file is divided into parts, each of which is read by itself, maybe on another machine.

A source says by `Source.divide` where its parts begin: with a record, so that together they hold
what the whole file does, under the same numbers. What only the whole file can tell, such as that no
record has a column, comes out of what all of its parts say (`join_logs`).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from embedding_pipelines.sources.base import ReadLog, Source

SAMPLE_RECORDS = 100  # of a file: the error about a missing field lists their fields


@dataclass(frozen=True)
class Part:
    """From `start` to before `end`: bytes of a text, or row groups."""

    start: int
    end: int
    row: int  # number of its first line or row in the file
    text_start: int = 0  # where the file's text begins, behind a byte order mark
    encoding: str = ""  # of the file, as a log names it

    @property
    def is_first(self) -> bool:
        return self.start == self.text_start


class Border(NamedTuple):
    """Where a part may begin, or end."""

    at: int  # as Part counts
    row: int
    size_bytes: int  # of the file before it


@dataclass(frozen=True)
class Fields:
    """What records of a format without a header have, in one part of a file."""

    records: int
    missing: frozenset[str]  # columns of the pipeline that none of them has
    names: dict[str, int]  # of fields -> the first record that has it, of SAMPLE_RECORDS


def parts_between(borders: Iterable[Border], part_bytes: int) -> Iterator[Part]:
    """Parts of `part_bytes` or a little more, and the rest. Records begin at the first border and
    end at the last one."""
    every = iter(borders)
    start = last = next(every)
    for last in every:
        if last.size_bytes - start.size_bytes >= part_bytes:
            yield Part(start.at, last.at, start.row)
            start = last
    if last.at > start.at:
        yield Part(start.at, last.at, start.row)


def join_logs(source: "Source", name: str, log: "ReadLog", parts: Sequence["ReadLog"]) -> None:
    """Take into the log of the file of this name what those of all of its parts say, in order.
    Raises SourceError as reading the whole file would."""
    for part in parts:
        for column, words in part.absent.items():
            log.absent.setdefault(column, Counter()).update(words)
    first = parts[0]
    log.lacking, log.columns, log.hint = first.lacking, first.columns, first.hint
    log.id_cell = first.id_cell
    fields = [part.fields for part in parts if part.fields is not None]
    if any(each.records for each in fields):
        before = accumulate((each.records for each in fields), initial=0)
        names = {
            name: None
            for each, records in zip(fields, before, strict=False)
            for name, at in each.names.items()
            if records + at < SAMPLE_RECORDS
        }
        missing = frozenset.intersection(*(each.missing for each in fields))
        source.check_columns(name, missing, names, log)
