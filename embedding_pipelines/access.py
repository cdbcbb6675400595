"""Who may see which document: the `permissions:` of a pipeline file, looked at by each search.

They are no part of a release: no run reads them, and no vector depends on them. What cannot be read
answers nothing, and a document that they do not name is seen by nobody. The pipeline file of today
says where they are; without one, the release does, or the file that was there before.
"""

import json
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding_pipelines.errors import (
    ConfigError,
    EmbeddingPipelinesError,
    PermissionsError,
    PermissionsLostError,
    SourceError,
    describe_os_error,
)
from embedding_pipelines.objects import is_uri
from embedding_pipelines.sources.base import FileSource, ReadLog, Rejection, Source, SourceFile
from embedding_pipelines.sources.inputs import Stamp, fetched
from embedding_pipelines.sources.text import COMPRESSED
from embedding_pipelines.sources.values import parse_list
from embedding_pipelines.spec.load import pipeline_file, read_draft
from embedding_pipelines.stores.base import Filter, Searchable
from embedding_pipelines.vectors import Distance

LOOK_SECONDS = 5.0  # between two looks at a bucket or a database; at a file each search looks
# A file that was written so shortly before it is read may be written again within a tick of its clock.
TICK_NANOSECONDS = 100_000_000
READINGS = 5  # of permissions that change while they are read
# A pipeline file without its permissions may be one that an editor is writing, whose end is to come.
SETTLED_SECONDS = 2.0
UNIONS, UNION_IDS = 256, 4_000_000  # held for the next search, and the ids in all of them: 0.3 GB
# As many ids are named to the store, which looks at no other row. Measured on 100,000 rows of 128
# dimensions, processor time: 30 ms for 10 ids, 37 for 1,000; a search that names none takes 19.
NAMED_IDS = 2_000
# Of somebody who sees more, so many times k rows are searched, and those of others left out.
# Not more times: the parts of an index that a search looks at hold the nearest rows, not all of them.
WIDER = (4, 32)
WIDEST = 10_000  # rows of such a search
# An option that a source's error names, and what it is called here.
OPTION = re.compile(r"\bsource\.([a-z_]+)\b")
# In a broken pipeline file: the section, also misspelled, in the wrong place, or cut.
NAMED = re.compile(rb"\bpermis\w*[\"']?\s*(?::|\Z)")
HOW = (
    "by `principals=[…]` in Python, --as (or --as-operator) on the command line, the header X-Principals "
    "or a key that is bound to principals over HTTP"
)

# Said whatever there is: who may see nothing learns no more than that.
SEES_NOTHING = (
    "The permissions name none of those for whom this is read, so they may see no document."
)

Rows = TypeVar("Rows", pa.Table, pa.RecordBatch)


class Operator(Enum):
    """Whoever has the home folder, and sees every document."""

    OPERATOR = "operator"


OPERATOR = Operator.OPERATOR
# For whom something is read: users and groups, by the names that the permissions have for them.
Principals = Sequence[str] | Operator | None


@dataclass(frozen=True)
class Visible:
    """The documents that somebody may see."""

    ids: frozenset[str]

    def __contains__(self, document_id: object) -> bool:
        return document_id in self.ids

    @property
    def notes(self) -> list[str]:
        """What a search says beside its hits."""
        return [] if self.ids else [SEES_NOTHING]

    def filter(self, rows: Rows) -> Rows:
        """Those of `rows`, by their column document_id."""
        mask = [name in self.ids for name in rows["document_id"].to_pylist()]
        return rows.filter(pa.array(mask, pa.bool_()))


class Access:
    """The permissions of one pipeline, as they are now; threads may share it."""

    def __init__(
        self,
        home: Path,
        name: str,
        released: Source | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`released` are those of the release: they count where there is no pipeline file."""
        self._home, self._name, self.released, self._clock = home, name, released, clock
        self._lock = threading.Lock()
        self._file: tuple[Path, Stamp] | None = None  # the pipeline file that was read
        self._source = released
        self._table: _Table | None = None
        self._looked_at = float("-inf")

    def permissions(self) -> Source | None:
        """Where the permissions are now; None: everybody may see every document. Raises
        PermissionsLostError where the pipeline file is too broken to tell."""
        with self._lock:
            return self._permissions()

    def visible(self, principals: Principals) -> Visible | None:
        """What the union of some principals may see; None: every document, since the pipeline has no
        permissions, or the operator asks.

        Raises PermissionsLostError for permissions that cannot be read, PermissionsError where nobody
        says who asks, ConfigError for principals that are none.
        """
        if isinstance(principals, Operator):
            return None
        if isinstance(principals, str) or not all(
            isinstance(each, str) and each for each in principals or ()
        ):
            raise ConfigError(
                f"principals is {principals!r}. Write a list of names, as in ['ann', 'sales']."
            )
        with self._lock:
            source = self._permissions()
            if source is None:
                return None
            if principals is None:
                raise PermissionsError(
                    f"Pipeline {self._name!r} has permissions, so say for whom it is read: {HOW}."
                )
            return self._now(source).visible(principals)

    def _permissions(self) -> Source | None:
        """A file takes none away by being gone, as between two steps of an editor that saves it, by
        being broken, or while it may be half written."""
        file = pipeline_file(self._name, self._home)
        try:
            status = None if file is None else file.stat()
        except OSError as error:
            raise PermissionsLostError(self._unreadable(describe_os_error(error))) from error
        if file is None or status is None:
            self._file, self._source = None, self._last
            return self._source
        now = (file, _stamp_of(status))
        if now != self._file:
            source, before = self._read_file(file), self._last
            if source is None and before is not None and not _has_settled(*now):
                self._file = None  # the next search looks again
                return before
            self._source, self._file = source, now
        return self._source

    def _read_file(self, file: Path) -> Source | None:
        """Raises PermissionsLostError for a file that may name some and cannot be read."""
        draft = read_draft(file)
        if draft.spec is not None and "permissions" not in draft.wrong:
            permissions: Source | None = draft.spec.permissions
            if permissions is not None or not draft.problems:
                return permissions
        try:  # without the zeros of UTF-16
            names_some = NAMED.search(file.read_bytes().replace(b"\0", b"")) is not None
        except OSError:
            names_some = True
        if names_some:
            raise PermissionsLostError(self._unreadable(draft.problems[0]))
        return self._last

    @property
    def _last(self) -> Source | None:
        """The permissions that counted until now."""
        return self.released if self._source is None else self._source

    def _now(self, source: Source) -> "_Table":
        """The permissions as they are, or were LOOK_SECONDS ago where a look takes long."""
        is_near = isinstance(source, FileSource) and not any(map(is_uri, source.path))
        table, now = self._table, self._clock()
        if table is not None and table.source == source:
            if not is_near and now - self._looked_at < LOOK_SECONDS:
                return table
        else:
            table = None
        self._table = None  # what is old does not answer where what is new cannot be read
        try:
            stamps = _stamps(source, self._home)
            if table is None or table.stamps != stamps or table.may_change:
                table = _read(source, self._home, is_near)
        except (EmbeddingPipelinesError, OSError) as error:
            words = describe_os_error(error) if isinstance(error, OSError) else str(error)
            raise PermissionsLostError(self._unreadable(words)) from error
        self._table, self._looked_at = table, now
        return table

    def _unreadable(self, words: str) -> str:
        words = OPTION.sub(
            lambda match: f"permissions.{'principals' if match[1] == 'text' else match[1]}", words
        )
        return f"Pipeline {self._name!r} answers nothing, since its permissions cannot be read: {words}"


def _stamp_of(status: os.stat_result) -> Stamp:
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def _has_settled(file: Path, stamp: Stamp) -> bool:
    """Whether a file has this stamp still, and has had it for a while."""
    try:
        status = file.stat()
    except OSError:
        return False
    return _stamp_of(status) == stamp and time.time() - status.st_mtime >= SETTLED_SECONDS


@dataclass(frozen=True)
class _Table:
    """Permissions as they were read."""

    source: Source
    stamps: dict[str, Stamp]
    may_change: bool  # without another stamp
    documents: Mapping[str, frozenset[str]]  # ids by principal
    _unions: dict[frozenset[str], Visible] = field(default_factory=dict)

    def visible(self, principals: Sequence[str]) -> Visible:
        key = frozenset(principals)
        visible = self._unions.get(key)
        if visible is None:
            sets = [self.documents.get(each, frozenset()) for each in key]
            if len(sets) == 1:
                return Visible(sets[0])
            visible = Visible(frozenset[str]().union(*sets))
            held = sum(len(each.ids) for each in self._unions.values())
            if len(self._unions) >= UNIONS or held + len(visible.ids) > UNION_IDS:
                self._unions.clear()
            self._unions[key] = visible
        return visible


def _stamps(source: Source, home: Path) -> dict[str, Stamp]:
    return {each.name: each.stamp for each in source.files(home)}


def _read(source: Source, home: Path, is_near: bool) -> _Table:
    """Raises SourceError for what is missing, damaged, or not whole."""
    for _ in range(READINGS):
        began_at = time.time_ns()
        documents, stamps = dict[str, set[str]](), dict[str, Stamp]()
        with fetched(source.files(home)) as files:
            for file in files:
                _read_file(source, file, documents)
                stamps[file.name] = file.stamp
        if stamps != _stamps(source, home):
            continue
        if not documents:
            raise SourceError(
                f"{source.place}: names no document, so nobody may see any. Write a row for each "
                "document and principal."
            )
        times = [part for stamp in stamps.values() for part in stamp[1:] if isinstance(part, int)]
        may_change = is_near and max(times, default=0) > began_at - TICK_NANOSECONDS
        ids = {name: frozenset(own) for name, own in documents.items()}
        return _Table(source, stamps, may_change, ids)
    raise SourceError(
        f"{source.place}: changes whenever it is read. Write it beside its place, then rename it."
    )


def _read_file(source: Source, file: SourceFile, documents: dict[str, set[str]]) -> None:
    _require_end(source, file)

    def refuse(rejection: Rejection) -> None:
        raise SourceError(f"{rejection.file}:{rejection.row}: {rejection.reason}.")

    for batch in source.read(file, ReadLog(refuse, json.dumps)):
        ids, texts = batch["document_id"].to_pylist(), batch["text"].to_pylist()
        for document_id, text in zip(ids, texts, strict=True):
            for principal in _principals(text):
                documents.setdefault(principal, set()).add(document_id)


def _principals(text: str | None) -> list[str]:
    """Of a cell: one, or a list as JSON. A line break is part of a name, which so is nobody's."""
    text = (text or "").strip()
    if text.startswith("["):
        try:
            return [name for each in parse_list(text) or () if (name := (each or "").strip())]
        except ValueError:
            pass  # a name
    return [text] if text else []


def _require_end(source: Source, file: SourceFile) -> None:
    """Raises SourceError for CSV whose last line has no end: it may be the half of a name, that of
    somebody else. Other formats tell themselves where they are cut."""
    if source.kind != "csv" or file.name.lower().endswith(tuple(COMPRESSED)):
        return
    with file.path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - 4))
        if size and not stream.read().rstrip(b"\0").endswith((b"\n", b"\r")):
            raise SourceError(
                f"{file.name}: the last line has no end, so it may be written in half. Write the file "
                "beside its place, a line end after each line, then rename it."
            )


class Permitted:
    """A table with the rows alone that somebody may see."""

    def __init__(self, table: Searchable, visible: Visible) -> None:
        self._table, self._visible = table, visible

    def search(
        self,
        vector: NDArray[np.generic],
        k: int,
        metric: Distance,
        filter: Filter | None,
        version: int,
        rescoring: bool = False,
        names: Mapping[str, str] | None = None,
        only: Sequence[str] | None = None,
    ) -> pa.Table:
        """As `Table.search`."""

        def rows_of(k: int, only: Sequence[str] | None) -> pa.Table:
            return self._table.search(vector, k, metric, filter, version, rescoring, names, only)

        return self._first(rows_of, k, is_exact=False)

    def search_text(
        self,
        text: str,
        k: int,
        filter: Filter | None,
        version: int,
        names: Mapping[str, str] | None = None,
        only: Sequence[str] | None = None,
    ) -> pa.Table:
        """As `Table.search_text`."""

        def rows_of(k: int, only: Sequence[str] | None) -> pa.Table:
            return self._table.search_text(text, k, filter, version, names, only)

        return self._first(rows_of, k, is_exact=True)

    def _first(
        self, rows_of: Callable[[int, Sequence[str] | None], pa.Table], k: int, is_exact: bool
    ) -> pa.Table:
        """The first `k` rows, if there are so many. Of many ids the store is told where a wider
        search does not find enough; unless it is exact, and there are no more."""
        ids = self._visible.ids
        wide = [k * times for times in WIDER if k * times <= WIDEST]
        for more in wide if len(ids) > NAMED_IDS else ():
            nearest = rows_of(more, None)
            rows = self._visible.filter(nearest)
            if rows.num_rows >= k or (is_exact and nearest.num_rows < more):
                return rows.slice(0, k)
        return self._visible.filter(rows_of(k, list(ids)))
