"""What a pipeline has forgotten for good: hashes of ids, contents and files, never a text.

A run leaves out what is named here, and says how many. The file lies beside the pipelines' folders,
since it outlives them, and has a copy: nothing else could say what must not come back.
"""

import hashlib
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from embedding_pipelines.errors import StoreError
from embedding_pipelines.files import read_json, write_json
from embedding_pipelines.schemas import DIGEST_BYTES

Kind = Literal["id", "content", "file", "record"]
COPY = ".copy.json"  # in place of `.json`
STAMP = "[0-9]" * 8 + "T" + "[0-9]" * 12 + "Z"  # a receipt's name between its pipeline and `.json`


@dataclass(frozen=True)
class Entry:
    """What was forgotten at once. Hashes are BLAKE2b with the list's salt, in hex."""

    at: str  # ISO 8601, UTC
    files: list[str] = field(default_factory=list)  # whose documents all are left out
    documents: list[str] = field(default_factory=list)  # of ids; without source.id of contents
    records: list[str] = field(default_factory=list)  # of the bytes of records that were rejected
    salt: str = ""  # of its hashes, where it came from another list; empty: the list's


@dataclass(frozen=True)
class Forgotten:
    """All that a pipeline has forgotten. Hashes of one salt compare with no other list; entries that
    came from another machine's keep their salt."""

    salt: str
    entries: list[Entry]

    def has(self, kind: Kind, value: bytes | str) -> bool:
        return not self._hashes.isdisjoint(self.hashes(kind, value))

    def hashes(self, kind: Kind, value: bytes | str) -> set[str]:
        """Those that a value may have in any of the entries."""
        return {self.hash(kind, value, salt) for salt in self._salts}

    def hash(self, kind: Kind, value: bytes | str, salt: str = "") -> str:
        data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        key, person = bytes.fromhex(salt or self.salt), kind.encode()
        return hashlib.blake2b(data, digest_size=DIGEST_BYTES, key=key, person=person).hexdigest()

    def with_more(self, values: Mapping[Kind, Iterable[bytes | str]]) -> "Forgotten":
        """With an entry of today for what is not in it already. What is named without a file has
        an entry of its own: to let a file come back does not let that come back."""
        before = self._hashes if values.get("file") else self._hashes_without_file
        new: dict[Kind, list[str]] = {}
        for kind, each in values.items():
            hashes = {self.hash(kind, value) for value in each}
            new[kind] = sorted(hashes - before)
        if not any(new.values()):
            return self
        entry = Entry(
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            files=new.get("file", []),
            documents=[*new.get("id", []), *new.get("content", [])],
            records=new.get("record", []),
        )
        return replace(self, entries=[*self.entries, entry])

    def without(self, ids: Iterable[str], files: Iterable[str]) -> "Forgotten":
        """Without these ids, and without all that was forgotten with these files."""
        gone = set[str]().union(*(self.hashes("id", name) for name in ids))
        gone_files = set[str]().union(*(self.hashes("file", name) for name in files))
        entries = [
            replace(entry, documents=[name for name in entry.documents if name not in gone])
            for entry in self.entries
            if gone_files.isdisjoint(entry.files)
        ]
        rest = [entry for entry in entries if entry.files or entry.documents or entry.records]
        return replace(self, entries=rest)

    def of_files(self, files: Iterable[str]) -> frozenset[str]:
        """The hashes of all documents that were forgotten with these files."""
        hashes = set[str]().union(*(self.hashes("file", name) for name in files))
        entries = [entry for entry in self.entries if not hashes.isdisjoint(entry.files)]
        return frozenset(name for entry in entries for name in entry.documents)

    def joined(self, other: "Forgotten") -> "Forgotten":
        """With all that another list has forgotten, too."""
        salted = [replace(entry, salt=entry.salt or other.salt) for entry in other.entries]
        new = [replace(entry, salt="") if entry.salt == self.salt else entry for entry in salted]
        return replace(
            self, entries=[*self.entries, *(entry for entry in new if entry not in self.entries)]
        )

    @cached_property
    def _salts(self) -> frozenset[str]:
        return frozenset({self.salt, *(entry.salt or self.salt for entry in self.entries)})

    @cached_property
    def _hashes(self) -> frozenset[str]:
        return _hashes_of(self.entries)

    @cached_property
    def _hashes_without_file(self) -> frozenset[str]:
        return _hashes_of([entry for entry in self.entries if not entry.files])

    def __bool__(self) -> bool:
        return bool(self._hashes)


def _hashes_of(entries: Iterable[Entry]) -> frozenset[str]:
    lists = ([*entry.files, *entry.documents, *entry.records] for entry in entries)
    return frozenset(name for names in lists for name in names)


def read_forgotten(path: Path) -> Forgotten:
    """From the copy if the file is lost or damaged; empty if there is neither. Raises StoreError if
    what is there is damaged: a run would bring back what must not come back."""
    record: dict[str, Any] | None = None
    damaged: StoreError | None = None
    for each in (path, path.with_suffix(COPY)):
        try:
            record = record or read_json(each)
        except StoreError as error:
            damaged = error
    if record is None and damaged is not None:
        raise StoreError(
            f"{path} and its copy are damaged: they say what this pipeline has forgotten for good. "
            "Put back a copy of one of them. Delete both only if all of that may come back."
        ) from damaged
    if record is None:
        return Forgotten(secrets.token_hex(DIGEST_BYTES), [])
    return Forgotten(record["salt"], [Entry(**entry) for entry in record["entries"]])


def write_forgotten(path: Path, forgotten: Forgotten) -> None:
    """On the disk before it returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for each in (path.with_suffix(COPY), path):
        write_json(each, asdict(forgotten))
