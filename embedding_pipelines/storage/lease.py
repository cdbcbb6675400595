"""One writer of a pipeline: a lease in its bucket, as a row of numbered records that are created
and never replaced.

The newest record says who holds the lease. To take it, to keep it and to give it back is to create
the next number, and a store lets one of several writers create an object: no store needs more than
that. A holder knows its records by a token, which nobody else ever has: numbers of records that were
deleted can be created again.
"""

import json
import logging
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from embedding_pipelines.errors import BucketError, BusyError
from embedding_pipelines.files import create_only, seal, unseal
from embedding_pipelines.objects import Bucket, Object

log = logging.getLogger(__name__)

LEASE_SECONDS = 600  # that a lease outlives the last sign of its holder
RENEWED_SECONDS = 60  # between two signs
KEPT_RECORDS = 5


@dataclass(frozen=True)
class Holder:
    """Who holds a lease: a process of a home."""

    host: str
    home: str
    copy: str  # of the warehouse, by a number of its own: homes of containers have the same name
    process: int
    since: str  # ISO 8601, UTC

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} ({self.home}) since {self.since}"

    def is_same_home(self, other: "Holder") -> bool:
        return (self.host, self.home, self.copy) == (other.host, other.home, other.copy)


@dataclass(frozen=True)
class _Record:
    number: int
    token: str
    holder: Holder | None  # None: the lease is free
    modified_at: datetime


def this_process(home: Path, warehouse: Path) -> Holder:
    """This process, as others are told of it."""
    mark = warehouse / "copy.id"
    create_only(mark, uuid.uuid4().hex)
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return Holder(socket.gethostname(), str(home), mark.read_text(), os.getpid(), since)


class Lease:
    """The lease of one pipeline as a holder has it; `folder` is where its records are.

    `is_takeover`: whoever held it before did not give it back, and may be alive.
    """

    def __init__(self, bucket: Bucket, folder: str, pipeline: str, holder: Holder) -> None:
        self.holder, self.is_takeover = holder, False
        self._bucket, self._folder, self._pipeline = bucket, folder, pipeline
        self._number, self._token = 0, uuid.uuid4().hex
        self._lock = threading.Lock()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Take the lease, keep it while the body runs, and give it back. Raises BusyError if
        somebody else has it."""
        self._take()
        ended = threading.Event()
        keeper = threading.Thread(target=self._keep, args=(ended,), daemon=True)
        keeper.start()
        try:
            yield
        finally:
            ended.set()
            keeper.join()
            self._give_back()

    def renew(self) -> bool:
        """Whether the lease is still held: a sign of life that nobody can give who has lost it."""
        with self._lock:
            return self._append(self.holder) and self._is_newest()

    def other_holder(self) -> str:
        """Who has it instead, in words."""
        record = self._newest()
        holder = record.holder if record and record.token != self._token else None
        return str(holder) if holder else "another process, which has ended since"

    def _take(self) -> None:
        while True:
            newest = self._newest()
            if newest is not None and newest.holder is not None:
                self._require_expired(newest, newest.holder)
            self._number = 0 if newest is None else newest.number
            # The newest record is never deleted, older ones are: a process that slept may create
            # one of them again, but then finds newer ones.
            if self._append(self.holder) and self._is_newest():
                self.is_takeover = newest is not None and newest.holder is not None
                return

    def _require_expired(self, record: _Record, holder: Holder) -> None:
        """Raises BusyError unless a record is too old to hold, by the store's clock, or of this
        home: whoever calls has its lock, so that its other processes have ended."""
        if holder.is_same_home(self.holder):
            return
        now = self._bucket.touch(f"{self._folder}/clock")
        silent = (now - record.modified_at).total_seconds()
        if silent < LEASE_SECONDS:
            raise BusyError(
                f"Pipeline {self._pipeline!r} is being run by {holder}, which holds its lease in "
                f"{self._bucket.uri(self._folder)}. Wait for it to end, then try again; if it has "
                f"died, the lease is free in {LEASE_SECONDS - silent:.0f} s."
            )

    def _keep(self, ended: threading.Event) -> None:
        while not ended.wait(RENEWED_SECONDS):
            try:
                if not self.renew():
                    log.warning("The lease of pipeline %r was taken over.", self._pipeline)
                    return
            except BucketError as error:  # the next sign may come through
                log.warning("The lease of pipeline %r was not renewed: %s", self._pipeline, error)

    def _give_back(self) -> None:
        try:
            with self._lock:
                self._append(None)
        except BucketError as error:
            log.warning("The lease of pipeline %r ends by itself: %s", self._pipeline, error)

    def _append(self, holder: Holder | None) -> bool:
        """Create the record after the last one of this holder; False if somebody else did."""
        number = self._number + 1
        who = asdict(holder) if holder else None
        value = {"token": self._token, "holder": who}
        content = seal(json.dumps(value))
        key = self._key(number)
        # A store may have taken a request whose answer was lost: then it is there, and of us.
        if not self._bucket.create(key, content) and self._bucket.read(key) != content:
            return False
        self._number = number
        if number > KEPT_RECORDS and number % KEPT_RECORDS == 0:
            entries = self._bucket.list_after(self._folder)
            older = [entry.key for entry in entries if entry.key < self._key(number - KEPT_RECORDS)]
            self._bucket.delete([key for key in older if key.endswith(".json")])
        return True

    def _is_newest(self) -> bool:
        newest = self._newest()
        return newest is not None and newest.token == self._token

    def _newest(self) -> _Record | None:
        while True:
            entries = self._bucket.list_after(self._folder)
            records = [entry for entry in entries if entry.key.endswith(".json")]
            if not records:
                return None
            content = self._bucket.read(records[-1].key)
            if content is not None:  # else it is no longer the newest
                return self._parse(records[-1], content)

    def _parse(self, entry: Object, content: bytes) -> _Record:
        try:
            value = unseal(content)
            holder = Holder(**value["holder"]) if value["holder"] else None
            number = int(entry.key.rpartition("/")[2].removesuffix(".json"))
            return _Record(number, value["token"], holder, entry.modified_at)
        except (ValueError, TypeError, KeyError):
            raise BucketError(
                f"{self._bucket.uri(entry.key)} is no record of a lease of this version. See that "
                f"nobody runs {self._pipeline!r}, then delete it."
            ) from None

    def _key(self, number: int) -> str:
        return f"{self._folder}/{number:010}.json"
