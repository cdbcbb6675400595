"""Batches: texts that a service embeds within a day, for less. What is with it stands in the warehouse.

A file per batch, written before the batch is submitted and removed when its results are in the ledger: whichever
process comes next, after a reboot too, finds it, and no text is submitted twice.
"""

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from embedding_pipelines.embedding.budget import Purse
from embedding_pipelines.embedding.ledger import Ledger
from embedding_pipelines.errors import ProviderError
from embedding_pipelines.providers.base import BatchService, BatchText, Provider, Role, faulty_rows

COLLECTED_AT_ONCE = 4_096  # vectors per commit
LINE_BYTES = 200  # of a request's line beside its text


@dataclass(frozen=True)
class Batch:
    """One batch on record. `keys` are the ledger's, hex; `id` is None until the service has given one."""

    tag: str
    space: str
    role: Role
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
    """No error: texts are with the service, and the rest of the chain waits for them. `str` says which."""


class Batches:
    """All batches of one space and role that are on record below `folder`, whoever submitted them."""

    def __init__(self, folder: Path, provider: Provider, service: BatchService, ledger: Ledger, role: Role) -> None:
        self._folder, self._service, self._ledger, self._role = folder, service, ledger, role
        self._space = provider.space
        self.refused: set[bytes] = set()  # by the batch, for ever: they are asked for once more, alone, for the reason
        self.tokens = 0  # billed for what was collected

    def collect(self) -> None:
        """File what has ended in the ledger.

        Raises ProviderError if the service took a batch in and would not have it; it is then forgotten.
        """
        for batch in self.on_record():
            known = self._submitted(batch)
            if known is None:
                self._forget(batch)
                continue
            state = self._service.state(known.id or "")
            if not state.has_ended:
                continue
            if state.failure:
                self._forget(known)
                raise ProviderError(f"The service refused batch {known.id}: {state.failure} The next run tries again.")
            self._file(self._service.results(known.id or ""))
            self.tokens += state.tokens or 0
            self._forget(known)

    def waiting(self) -> Waiting | None:
        """What is still with the service, None if nothing is."""
        out = self.on_record()
        if not out:
            return None
        done = sum(self._service.state(batch.id or "").done for batch in out)
        return Waiting(len(out), sum(len(batch.keys) for batch in out), done, out[0].submitted_at)

    def pending(self) -> set[bytes]:
        """Keys of the texts that are with the service."""
        return {bytes.fromhex(key) for batch in self.on_record() for key in batch.keys}

    def submit(self, texts: Iterable[tuple[bytes, str, int]], purse: Purse) -> None:
        """Hand over texts, each with its key and tokens, in as many batches as the service wants.

        Raises BudgetError before the batch that would go beyond.
        """
        part: dict[str, str] = {}
        size = tokens = 0
        for key, text, count in texts:
            bytes_of = len(json.dumps(text, ensure_ascii=False).encode()) + LINE_BYTES
            if part and (len(part) == self._service.max_texts or size + bytes_of > self._service.max_bytes):
                self._submit(part, tokens, purse)
                part, size, tokens = {}, 0, 0
            part[key.hex()] = text
            size += bytes_of
            tokens += count
        if part:
            self._submit(part, tokens, purse)

    def ended(self) -> list[str]:
        """Tags of those whose results can be collected, or that were never submitted."""
        known = {batch.tag: self._submitted(batch) for batch in self.on_record()}
        return [tag for tag, batch in known.items() if batch is None or self._service.state(batch.id or "").has_ended]

    def on_record(self) -> list[Batch]:
        """Those of this space and role, oldest first."""
        found = [Batch(**json.loads(path.read_text("utf-8"))) for path in self._folder.glob("*.json")]
        mine = [batch for batch in found if (batch.space, batch.role) == (self._space.id, self._role)]
        return sorted(mine, key=lambda batch: batch.submitted_at)

    def _submit(self, part: Mapping[str, str], tokens: int, purse: Purse) -> None:
        if not purse.holds(tokens):
            raise purse.is_empty()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        batch = Batch(uuid.uuid4().hex, self._space.id, self._role, list(part), now)
        self._write(batch)  # first: a process that dies from here on finds it by its tag
        self._write(replace(batch, id=self._service.submit(part, self._role, batch.tag)))
        purse.spend(tokens, tokens)

    def _submitted(self, batch: Batch) -> Batch | None:
        """The batch with its id; None if the process that wrote it died before it was submitted."""
        if batch.id is not None:
            return batch
        found = self._service.find(batch.tag)
        if found is None:
            return None
        known = replace(batch, id=found)
        self._write(known)
        return known

    def _file(self, results: Iterator[BatchText]) -> None:
        part: list[BatchText] = []
        for text in results:
            if text.is_refused:
                self.refused.add(bytes.fromhex(text.id))
            elif text.vector is not None and len(text.vector) == self._space.dimensions:
                part.append(text)
            if len(part) == COLLECTED_AT_ONCE:
                self._commit(part)
                part = []
        self._commit(part)

    def _commit(self, part: list[BatchText]) -> None:
        if not part:
            return
        vectors = np.stack([text.vector for text in part if text.vector is not None])
        faults = faulty_rows(vectors, [text.id for text in part], self._space)
        good = [row for row in range(len(part)) if row not in faults]
        self._ledger.put([bytes.fromhex(part[row].id) for row in good], vectors[good])

    def _write(self, batch: Batch) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        draft = self._folder / f".{batch.tag}.draft"
        draft.write_text(json.dumps(asdict(batch)), encoding="utf-8")
        draft.replace(self._path(batch))

    def _forget(self, batch: Batch) -> None:
        self._path(batch).unlink(missing_ok=True)

    def _path(self, batch: Batch) -> Path:
        return self._folder / f"{batch.tag}.json"
