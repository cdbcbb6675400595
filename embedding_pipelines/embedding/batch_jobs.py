"""Batches: texts that a service embeds within a day, for less. What is with it stands in the
warehouse.

A file per batch, written before the batch is submitted and removed when its results are in the
cache: whichever process comes next, after a reboot too, finds it, and no text is submitted twice.
"""

import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from embedding_pipelines.embedding.budget import BudgetTracker
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.embedding.limiter import LONGEST_PAUSE_SECONDS
from embedding_pipelines.embedding.request import FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS, TRIES
from embedding_pipelines.errors import Busy, ProviderError, StoreError, Unreachable
from embedding_pipelines.files import delete, list_files, write_atomic
from embedding_pipelines.providers.base import (
    BatchService,
    BatchState,
    BatchText,
    EmbeddingModel,
    InputType,
    faulty_rows,
)
from embedding_pipelines.schemas import digest

if TYPE_CHECKING:
    from tenacity import RetryCallState

Found = TypeVar("Found")

COLLECTED_AT_ONCE = 4_096  # vectors per commit


@dataclass(frozen=True)
class Batch:
    """One batch on record. `keys` are the cache's, hex; `id` is None until the service has given
    one."""

    tag: str
    address: str  # of the service: another one may serve the same model, and knows nothing of it
    space: str
    input_type: InputType
    keys: list[str]
    submitted_at: str
    id: str | None = None


@dataclass(frozen=True)
class Waiting:
    """What is with the service."""

    batches: int
    texts: int
    done: int
    since: str

    def __str__(self) -> str:
        return (
            f"{self.texts:,} texts are with the service in {self.batches} batches since {self.since}, {self.done:,} of "
            "them done. The next run collects what is there: the sensor asks for it, or run the pipeline again later."
        )


class NotYet(Exception):
    """No error: texts are with the service, and the rest of the chain waits for them. `str` says
    which."""


class Batches:
    """All batches of one service, space and input type that are on record below `folder`, whoever
    submitted them.

    Each request is made up to `tries` times. Who uses it holds the warehouse's `batches_lock`. What
    fails on the way is a ProviderError, and what is with the service stays on record.
    """

    def __init__(
        self,
        folder: Path,
        model: EmbeddingModel,
        service: BatchService,
        cache: EmbeddingCache,
        input_type: InputType,
        tries: int = TRIES,
    ) -> None:
        self._folder, self._service, self._cache, self._input_type, self._tries = (
            folder,
            service,
            cache,
            input_type,
            tries,
        )
        self._space, self._address = (
            model.space,
            getattr(model, "address", ""),
        )
        self._left = folder / f"{self._space.id}-{input_type}.refused"
        # A batch gave them no vector that can be believed. They are asked for directly, which says
        # why; for good, so that none goes from batch to batch.
        self.refused = (
            {bytes.fromhex(line) for line in self._left.read_text().split()}
            if self._left.exists()
            else set()
        )
        self.tokens = 0  # billed for what was collected

    def collect(self) -> None:
        """File what has ended in the cache.

        Raises ProviderError if the service took a batch in and would not have it; it is then
        forgotten, and all the others are collected.
        """
        failures = []
        for batch in self.on_record():
            known = self._submitted(batch)
            if known is None:
                self._forget(batch)
                continue
            state = self._state(known)
            if not state.has_ended:
                continue
            if state.failure:
                failures.append(f"The service refused batch {known.id}: {state.failure}")
            else:
                self._patiently(partial(self._file, known))
                self.tokens += state.tokens or 0
            self._forget(known)
        if failures:
            raise ProviderError(f"{' '.join(failures)} The next run submits their texts again.")

    def waiting(self) -> Waiting | None:
        """What is still with the service, None if nothing is."""
        out = self.on_record()
        if not out:
            return None
        done = sum(self._state(batch).done for batch in out if batch.id is not None)
        return Waiting(len(out), sum(len(batch.keys) for batch in out), done, out[0].submitted_at)

    def pending(self) -> set[bytes]:
        """Keys of the texts that are with the service."""
        return {bytes.fromhex(key) for batch in self.on_record() for key in batch.keys}

    def submit(
        self,
        texts: Iterable[tuple[bytes, str, int]],
        budget: BudgetTracker,
        announce: Callable[[str], None] = lambda tag: None,
    ) -> None:
        """Hand over texts, each with its key and tokens, in as many batches as the service wants.

        `announce` is told the tag of each before it is put on record. Raises BudgetError before the
        text that would go beyond.
        """
        part: dict[str, str] = {}
        size = tokens = 0
        for key, text, count in texts:
            bytes_of = len(json.dumps(text, ensure_ascii=False).encode())
            is_full = (
                len(part) == self._service.max_texts or size + bytes_of > self._service.max_bytes
            )
            if part and (is_full or not budget.holds(tokens + count)):
                self._submit(part, tokens, budget, announce)
                part, size, tokens = {}, 0, 0
            part[key.hex()] = text
            size += bytes_of
            tokens += count
        if part:
            self._submit(part, tokens, budget, announce)

    def ended(self) -> list[str]:
        """A name for each thing that there is to collect, the same as long as nothing new has come.

        What was never submitted, since its process died or the service did not answer, is named by
        its texts: submitted again in vain, it is no news.
        """
        found = []
        for batch in self.on_record():
            known = self._submitted(batch)
            if known is None:
                found.append(digest("".join(sorted(batch.keys)).encode()).hex())
            elif self._state(known).has_ended:
                found.append(known.tag)
        return found

    def on_record(self) -> list[Batch]:
        """Those of this service, space and input type, oldest first."""
        wanted = (self._address, self._space.id, self._input_type)
        found = [_read(path) for path in list_files(self._folder, "*.json")]
        mine = [
            batch for batch in found if (batch.address, batch.space, batch.input_type) == wanted
        ]
        return sorted(mine, key=lambda batch: batch.submitted_at)

    def _submit(
        self,
        part: Mapping[str, str],
        tokens: int,
        budget: BudgetTracker,
        announce: Callable[[str], None],
    ) -> None:
        if not budget.holds(tokens):
            raise budget.is_empty()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        batch = Batch(
            uuid.uuid4().hex, self._address, self._space.id, self._input_type, list(part), now
        )
        announce(batch.tag)
        self._write(batch)  # first: a process that dies from here on finds it by its tag
        was_sent = False

        def sent() -> str:
            """Its id. What was sent once may have been heard though nobody answered: it is looked
            for first."""
            nonlocal was_sent
            found = self._service.find(batch.tag) if was_sent else None
            if found is not None:
                return found
            was_sent = True
            try:
                return self._service.submit(part, self._input_type, batch.tag)
            except (Unreachable, Busy):
                raise
            except ProviderError:  # said clearly: there is no such batch
                self._forget(batch)
                raise

        self._write(replace(batch, id=self._patiently(sent)))
        budget.spend(tokens, tokens)

    def _submitted(self, batch: Batch) -> Batch | None:
        """The batch with its id; None if the process that wrote it died before it was submitted."""
        if batch.id is not None:
            return batch
        found = self._patiently(lambda: self._service.find(batch.tag))
        if found is None:
            return None
        known = replace(batch, id=found)
        self._write(known)
        return known

    def _state(self, batch: Batch) -> BatchState:
        return self._patiently(lambda: self._service.state(batch.id or ""))

    def _file(self, batch: Batch) -> None:
        """The vectors of a batch that has ended; done twice, it does no harm."""
        wanted, part = set(batch.keys), list[BatchText]()
        for text in self._service.results(batch.id or ""):
            if text.id not in wanted:
                continue
            if text.vector is not None and len(text.vector) == self._space.dimensions:
                part.append(text)
            elif text.vector is not None or text.is_rejected:
                self.refused.add(bytes.fromhex(text.id))
            if len(part) == COLLECTED_AT_ONCE:
                self._commit(part)
                part = []
        self._commit(part)
        if self.refused:
            lines = "".join(f"{key.hex()}\n" for key in sorted(self.refused))
            write_atomic(self._left, lines, durable=True)

    def _commit(self, part: list[BatchText]) -> None:
        if not part:
            return
        keys = [bytes.fromhex(text.id) for text in part]
        vectors = np.stack([text.vector for text in part if text.vector is not None])
        faults = set(faulty_rows(vectors, [text.id for text in part], self._space))
        if (
            len(part) > 1 and (vectors == vectors[0]).all()
        ):  # asked directly, the service has to prove itself
            faults = set(range(len(part)))
        good = [row for row in range(len(part)) if row not in faults]
        self._cache.put_many([keys[row] for row in good], vectors[good])
        self.refused.update(keys[row] for row in faults)

    def _patiently(self, call: Callable[[], Found]) -> Found:
        """What a request brings, made again while it fails on the way."""
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

        later = (Unreachable, Busy)
        tried = Retrying(
            retry=retry_if_exception_type(later),
            stop=stop_after_attempt(self._tries),
            wait=_pause,
            reraise=True,
        )
        try:
            return tried(call)
        except later as error:
            raise ProviderError(
                f"{error} What is with the service stays on record: run again later."
            ) from error

    def _write(self, batch: Batch) -> None:
        """On the disk before it returns: what is lost in a power cut would be paid for again."""
        write_atomic(self._path(batch), json.dumps(asdict(batch)), durable=True)

    def _forget(self, batch: Batch) -> None:
        delete(self._path(batch))

    def _path(self, batch: Batch) -> Path:
        return self._folder / f"{batch.tag}.json"


def _read(path: Path) -> Batch:
    try:
        return Batch(**json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise StoreError(
            f"{path} is damaged: {error}. Put back a copy of it, or delete it: the texts of its batch are then "
            "submitted again."
        ) from error


def _pause(state: "RetryCallState") -> float:
    """Seconds before a request is made again: as long as the service asks for, else longer each
    time."""
    from tenacity import wait_random_exponential

    error = state.outcome.exception() if state.outcome is not None else None
    if isinstance(error, Busy) and error.retry_after_seconds is not None:
        return min(error.retry_after_seconds, LONGEST_PAUSE_SECONDS)
    return wait_random_exponential(FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS)(state)
