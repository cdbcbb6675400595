"""What people really searched for: some of the queries that a server answered, what they were shown,
and what they said of it.

receipts/2026-11-27.jsonl in the pipeline's folder holds a day's, a line each. They are kept for
KEPT_DAYS; a line that is torn is left out.
"""

import hashlib
import itertools
import re
import secrets
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock

from embedding_pipelines.files import (
    append_line,
    delete,
    list_files,
    read_json,
    read_lines,
    unseal,
    write_json,
    write_lines,
)

KEPT_DAYS = 90
HIGHEST = 3  # rating: as in the graded judgements of TREC, 0 is not relevant at all
CLICK = 1  # rating that a click stands for
ID = re.compile(r"(\d{4})(\d\d)(\d\d)-[0-9a-f]{32}(?:-(\d{1,15}))?")
LINES_AT_BEGIN = 2  # of which the first may end a torn one
LOCK_SECONDS = 10.0  # for another process, which takes milliseconds


@dataclass(frozen=True)
class Receipt:
    """One search that was answered."""

    id: str
    at: str  # ISO 8601, UTC
    release: int
    query: str | None  # None: only its hash is kept
    hash: str  # of the query, with a salt of the pipeline's own
    mode: str
    filter: Any = None
    k: int = 10
    documents: list[str] = field(default_factory=list)  # that were shown, best first


@dataclass(frozen=True)
class Rating:
    """What somebody said of one document for one receipt's query."""

    receipt: str
    document_id: str
    rating: int  # 0 to HIGHEST


class Receipts:
    """The receipts of one pipeline; several processes may write them."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the pipeline's."""
        self.folder = folder / "receipts"

    def add(
        self,
        query: str,
        documents: Sequence[str],
        *,
        release: int,
        mode: str,
        k: int,
        filter: Any = None,
        keeps_text: bool,
    ) -> str:
        """Write a receipt and return its id."""
        now, hash = datetime.now(UTC), self._hash(query)
        with self._of_today(now) as path:
            # Where it begins is part of the id, so that `rate` reads one line.
            begin = path.stat().st_size if path.exists() else 0
            receipt = Receipt(
                id=f"{now:%Y%m%d}-{uuid.uuid4().hex}-{begin}",
                at=now.isoformat(timespec="milliseconds"),
                release=release,
                query=query if keeps_text else None,
                hash=hash,
                mode=mode,
                filter=filter if keeps_text else None,  # which may name somebody, too
                k=k,
                documents=list(dict.fromkeys(documents)),
            )
            append_line(path, asdict(receipt))
        return receipt.id

    def rate(self, receipt: str, document_id: str, rating: int) -> bool:
        """Write what somebody said of a document; False if there is no such receipt, or it did not
        show the document, which may have been forgotten since."""
        shown = self._find(receipt)
        if shown is None or document_id not in shown.documents:
            return False
        with self._of_today(datetime.now(UTC)) as path:
            append_line(path, asdict(Rating(receipt, document_id, rating)))
        return True

    def read(self) -> tuple[list[Receipt], list[Rating]]:
        """All that is kept, oldest first."""
        receipts, ratings = list[Receipt](), list[Rating]()
        for path in self._files():
            for line in read_lines(path)[0]:
                if "rating" in line:
                    ratings.append(Rating(**line))
                else:
                    receipts.append(Receipt(**line))
        return receipts, ratings

    def forget(
        self,
        is_forgotten: Callable[[str], bool],
        quotes: Callable[[Any], bool] = lambda line: False,
    ) -> int:
        """Remove documents, which their ids tell, from all receipts, ratings of them, and receipts
        whose line `quotes` what is forgotten; returns from how many lines."""
        changed = 0
        if not self.folder.is_dir():
            return changed
        with self._lock():
            for path in self._files():
                lines, torn = read_lines(path)
                rest = (_without(line, is_forgotten) for line in lines if not quotes(line))
                lines_left = [line for line in rest if line]
                if lines_left != lines or torn:
                    changed += sum(line not in lines_left for line in lines)
                    write_lines(path, lines_left)
        return changed

    def forget_unseen(
        self, is_forgotten: Callable[[str], bool], quotes: Callable[[Any], bool]
    ) -> int:
        """As `forget`, where not all texts may be at hand: receipts that showed such a document go
        whole, since their queries may quote it."""

        def goes(line: Any) -> bool:
            return quotes(line) or any(map(is_forgotten, line.get("documents", ())))

        return self.forget(is_forgotten, goes)

    def delete(self) -> None:
        """Delete all of it."""
        if self.folder.is_dir():
            with self._lock():
                for path in self._files():
                    delete(path)

    @contextmanager
    def _of_today(self, now: datetime) -> Iterator[Path]:
        """The file of a day, to append to. `forget` replaces it, so the lock is held."""
        today = now.date()
        path = self.folder / f"{today}.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock():
            if not path.exists():
                for old in self._files():
                    if date.fromisoformat(old.stem) < today - timedelta(days=KEPT_DAYS):
                        delete(old)
            yield path

    def _find(self, id: str) -> Receipt | None:
        """The receipt of an id, from where it says; from anywhere in its day, where lines before it
        have changed since."""
        match = ID.fullmatch(id)
        if match is None:
            return None
        year, month, day, begin = match.groups()
        path = self.folder / f"{year}-{month}-{day}.jsonl"
        if not path.exists():
            return None
        with path.open("rb") as file:
            for start in (int(begin), 0) if begin else (0,):
                file.seek(start)
                lines = itertools.islice(file, LINES_AT_BEGIN) if start else file
                for line in lines:
                    if id.encode() not in line:
                        continue
                    with suppress(ValueError):  # torn
                        value = unseal(line.removesuffix(b"\n"))
                        if value.get("id") == id:
                            return Receipt(**value)
        return None

    def _files(self) -> list[Path]:
        return sorted(list_files(self.folder, "????-??-??.jsonl"))

    def _hash(self, query: str) -> str:
        path = self.folder / "salt.json"
        content = read_json(path)
        if content is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock():
                content = read_json(path) or {"salt": secrets.token_hex(16)}
                write_json(path, content)
        key = bytes.fromhex(content["salt"])
        return hashlib.blake2b(query.encode(), digest_size=16, key=key).hexdigest()

    def _lock(self) -> FileLock:
        return FileLock(self.folder / ".lock", timeout=LOCK_SECONDS)


def forget_quotes(pipelines: Path, quotes: Callable[[Any], bool]) -> int:
    """Remove the receipts of all pipelines whose line `quotes` what is forgotten, for people ask
    one pipeline for what another one holds; how many lines."""
    folders = [path for path in pipelines.iterdir() if path.is_dir()] if pipelines.is_dir() else []
    return sum(Receipts(folder).forget(lambda _: False, quotes) for folder in folders)


def _without(line: dict[str, Any], is_forgotten: Callable[[str], bool]) -> dict[str, Any] | None:
    """A line without these documents; None of a rating of one."""
    if "rating" in line:
        return None if is_forgotten(line["document_id"]) else line
    rest = [name for name in line["documents"] if not is_forgotten(name)]
    return {**line, "documents": rest}
