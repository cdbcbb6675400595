"""What people really searched for: some of the queries that a server answered, what they were shown,
and what they said of it.

receipts/2026-11-27.jsonl in the pipeline's folder holds a day's, a line each. They are kept for
KEPT_DAYS; a line that is torn is left out.
"""

import hashlib
import secrets
import uuid
from collections.abc import Callable, Iterator, Sequence
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
    write_json,
    write_lines,
)

KEPT_DAYS = 90
HIGHEST = 3  # rating: as in the graded judgements of TREC, 0 is not relevant at all
CLICK = 1  # rating that a click stands for
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
        now = datetime.now(UTC)
        receipt = Receipt(
            id=f"{now:%Y%m%d}-{uuid.uuid4().hex}",
            at=now.isoformat(timespec="milliseconds"),
            release=release,
            query=query if keeps_text else None,
            hash=self._hash(query),
            mode=mode,
            filter=filter if keeps_text else None,  # which may name somebody, too
            k=k,
            documents=list(dict.fromkeys(documents)),
        )
        self._append(asdict(receipt))
        return receipt.id

    def rate(self, receipt: str, document_id: str, rating: int) -> bool:
        """Write what somebody said of a document; False if there is no such receipt, or it did not
        show the document, which may have been forgotten since."""
        receipts = self._of_day(receipt.partition("-")[0])
        if all(receipt != each.id or document_id not in each.documents for each in receipts):
            return False
        self._append(asdict(Rating(receipt, document_id, rating)))
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
                left = (_without(line, is_forgotten) for line in lines if not quotes(line))
                kept = [line for line in left if line]
                if kept != lines or torn:
                    changed += sum(line not in kept for line in lines)
                    write_lines(path, kept)
        return changed

    def forget_unseen(self, is_forgotten: Callable[[str], bool]) -> int:
        """As `forget`, where nobody has the texts any more: receipts that showed such a document go
        whole, since their queries may quote it."""
        return self.forget(
            is_forgotten, lambda line: any(map(is_forgotten, line.get("documents", ())))
        )

    def delete(self) -> None:
        """Delete all of it."""
        if self.folder.is_dir():
            with self._lock():
                for path in self._files():
                    delete(path)

    def _append(self, line: dict[str, Any]) -> None:
        today = datetime.now(UTC).date()
        path = self.folder / f"{today}.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock():  # `forget` replaces the file
            if not path.exists():
                for old in self._files():
                    if date.fromisoformat(old.stem) < today - timedelta(days=KEPT_DAYS):
                        delete(old)
            append_line(path, line)

    def _of_day(self, day: str) -> Iterator[Receipt]:
        path = self.folder / f"{day[:4]}-{day[4:6]}-{day[6:]}.jsonl"
        if path in self._files():
            yield from (Receipt(**line) for line in read_lines(path)[0] if "rating" not in line)

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


def _without(line: dict[str, Any], is_forgotten: Callable[[str], bool]) -> dict[str, Any] | None:
    """A line without these documents; None of a rating of one."""
    if "rating" in line:
        return None if is_forgotten(line["document_id"]) else line
    kept = [name for name in line["documents"] if not is_forgotten(name)]
    return {**line, "documents": kept}
