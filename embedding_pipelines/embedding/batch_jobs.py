"""Batch jobs: texts that a service embeds within a day, for less.

Each job is a file in the warehouse, written before the job is submitted and removed when its
results are in the cache: whichever process comes next, after a reboot too, goes on from there, and
no text is submitted twice.
"""

import itertools
import json
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from embedding_pipelines.embedding.budget import BudgetTracker
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.embedding.request import ATTEMPTS, retrying
from embedding_pipelines.errors import Busy, ProviderError, StoreError, Unreachable, counted
from embedding_pipelines.files import delete, list_files, seal, unseal, write_atomic
from embedding_pipelines.providers.base import (
    BatchState,
    BatchText,
    EmbeddingModel,
    InputType,
    faulty_rows,
)
from embedding_pipelines.schemas import digest

Result = TypeVar("Result")

COMMIT_TEXTS = 4_096  # vectors per commit to the cache


@dataclass(frozen=True)
class BatchJob:
    """The record of one job. `keys` are the cache's, hex; `id` is None until the service has given
    one."""

    tag: str
    address: str  # of the service: another one may serve the same model, and does not have the job
    space: str
    input_type: InputType
    keys: list[str]
    submitted_at: str
    id: str | None = None


class BatchPending(Exception):
    """Raised while a batch job is still running; not an error. `str` says which."""


class BatchJobs:
    """All jobs of one service, space and input type that are on record below `folder`, whichever
    pipeline submitted them.

    Each request is sent up to `attempts` times. Hold the warehouse's `batch_jobs_lock` meanwhile. A
    failure on the way is a ProviderError, and the jobs stay on record.
    """

    def __init__(
        self,
        folder: Path,
        model: EmbeddingModel,
        cache: EmbeddingCache,
        input_type: InputType,
        attempts: int = ATTEMPTS,
    ) -> None:
        if model.batch_service is None:
            raise TypeError(f"{model.space.title} has no batch service.")
        self._service, self._space = model.batch_service, model.space
        self._folder, self._cache, self._attempts = folder, cache, attempts
        self._input_type: InputType = input_type
        self._identity = (getattr(model, "address", ""), self._space.id, input_type)
        self._rejected_file = folder / f"{self._space.id}-{input_type}.rejected"
        # A job gave them no sound vector. They get a direct request, which says why; on record, so
        # that none goes from job to job.
        rejected = self._rejected_file.read_text() if self._rejected_file.exists() else ""
        self.rejected = set(map(bytes.fromhex, rejected.split()))
        self.billed_tokens = 0  # for what was collected

    def jobs(self) -> list[BatchJob]:
        """Those of this service, space and input type, oldest first."""
        jobs = [_read(path) for path in list_files(self._folder, "*.json")]
        own = [job for job in jobs if (job.address, job.space, job.input_type) == self._identity]
        return sorted(own, key=lambda job: job.submitted_at)

    def running(self) -> str | None:
        """How the jobs on record stand, in words; None if there are none."""
        jobs = self.jobs()
        if not jobs:
            return None
        texts = sum(len(job.keys) for job in jobs)
        count = sum(self._state(job).count for job in jobs if job.id is not None)
        return (
            f"{counted(texts, 'text')} {'is' if texts == 1 else 'are'} in "
            f"{counted(len(jobs), 'batch job')} since {jobs[0].submitted_at}, "
            f"{count:,} of them done. The next run collects the vectors: the sensor starts it, or "
            "run the pipeline again later."
        )

    def pending_keys(self) -> set[bytes]:
        """Keys of the texts that are in a job."""
        return {bytes.fromhex(key) for job in self.jobs() for key in job.keys}

    def finished(self) -> list[str]:
        """A name for each job to collect, the same as long as no other has finished.

        What was never submitted, since its process died or the service did not answer, is named by
        its texts: submitted again in vain, it is nothing new.
        """
        names = []
        for record in self.jobs():
            job = self._find_submitted(record)
            if job is None:
                names.append(digest("".join(sorted(record.keys)).encode()).hex())
            elif self._state(job).has_ended:
                names.append(job.tag)
        return names

    def collect(self) -> None:
        """File the results of finished jobs in the cache.

        Raises ProviderError if the service rejected a whole job; it is then forgotten, and all
        others are collected.
        """
        failures = []
        for record in self.jobs():
            job = self._find_submitted(record)
            if job is None:
                self._forget(record)
                continue
            state = self._state(job)
            if not state.has_ended:
                continue
            if state.failure:
                failures.append(f"The service rejected batch job {job.id}: {state.failure}")
            else:
                self._retry(partial(self._file, job))
                self.billed_tokens += state.tokens or 0
            self._forget(job)
        if failures:
            raise ProviderError(f"{' '.join(failures)} The next run submits their texts again.")

    def submit(
        self,
        texts: Iterable[tuple[bytes, str, int]],
        budget: BudgetTracker,
        announce: Callable[[str], None] = lambda tag: None,
    ) -> None:
        """Submit texts, each with its key and tokens, in as many jobs as the service asks for.

        `announce` is called with the tag of each before it is put on record. Raises BudgetError
        before the text that would go beyond.
        """
        part: dict[str, str] = {}
        size = tokens = 0
        for key, text, count in texts:
            text_bytes = len(json.dumps(text, ensure_ascii=False).encode())
            is_full = (
                len(part) == self._service.max_texts or size + text_bytes > self._service.max_bytes
            )
            if part and (is_full or not budget.holds(tokens + count)):
                self._submit(part, tokens, budget, announce)
                part, size, tokens = {}, 0, 0
            part[key.hex()] = text
            size += text_bytes
            tokens += count
        if part:
            self._submit(part, tokens, budget, announce)

    def _submit(
        self,
        texts: Mapping[str, str],
        tokens: int,
        budget: BudgetTracker,
        announce: Callable[[str], None],
    ) -> None:
        if not budget.holds(tokens):
            raise budget.exhausted_error()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        job = BatchJob(uuid.uuid4().hex, *self._identity, list(texts), now)
        announce(job.tag)
        self._write(job)  # first: a process that dies from here on is followed by one that finds it
        create = partial(self._create, job, texts)
        # A request may have been heard though nobody answered.
        name = self._retry(create, again=lambda: self._service.find(job.tag) or create())
        self._write(replace(job, id=name))
        budget.spend(tokens, tokens)

    def _create(self, job: BatchJob, texts: Mapping[str, str]) -> str:
        """The job's id at the service. A job that it clearly rejects is forgotten."""
        try:
            return self._service.submit(texts, self._input_type, job.tag)
        except (Unreachable, Busy):
            raise
        except ProviderError:
            self._forget(job)
            raise

    def _find_submitted(self, job: BatchJob) -> BatchJob | None:
        """The job with its id; None if its process died before it was submitted."""
        if job.id is None:
            job = replace(job, id=self._retry(lambda: self._service.find(job.tag)))
            if job.id is None:
                return None
            self._write(job)
        return job

    def _state(self, job: BatchJob) -> BatchState:
        return self._retry(lambda: self._service.state(job.id or ""))

    def _file(self, job: BatchJob) -> None:
        """The vectors of a finished job; done twice, it does no harm."""
        keys, part = set(job.keys), list[BatchText]()
        for text in self._service.results(job.id or ""):
            if text.id not in keys:
                continue
            if text.vector is not None and len(text.vector) == self._space.dimensions:
                part.append(text)
            elif text.vector is not None or text.is_rejected:
                self.rejected.add(bytes.fromhex(text.id))
            if len(part) == COMMIT_TEXTS:
                self._commit(part)
                part = []
        self._commit(part)
        if self.rejected:
            lines = "".join(f"{key.hex()}\n" for key in sorted(self.rejected))
            write_atomic(self._rejected_file, lines, durable=True)

    def _commit(self, texts: list[BatchText]) -> None:
        if not texts:
            return
        keys = [bytes.fromhex(text.id) for text in texts]
        vectors = np.stack([text.vector for text in texts if text.vector is not None])
        faults = set(faulty_rows(vectors, [text.id for text in texts], self._space))
        if len(texts) > 1 and (vectors == vectors[0]).all():
            faults = set(range(len(texts)))  # a direct request verifies the provider
        sound = [row for row in range(len(texts)) if row not in faults]
        self._cache.put_many([keys[row] for row in sound], vectors[sound], self._space.id)
        self.rejected.update(keys[row] for row in faults)

    def _retry(
        self, call: Callable[[], Result], again: Callable[[], Result] | None = None
    ) -> Result:
        """What a request returns, sent again while it fails on the way; as `again` from the second
        time on."""
        calls = itertools.chain([call], itertools.repeat(again or call))
        try:
            return retrying(self._attempts, Unreachable, Busy)(lambda: next(calls)())
        except (Unreachable, Busy) as error:
            raise ProviderError(
                f"{error} What was submitted stays on record: run again later."
            ) from error

    def _write(self, job: BatchJob) -> None:
        """On the disk before it returns: what is lost in a power cut would be paid for again."""
        write_atomic(self._path(job), seal(json.dumps(asdict(job))), durable=True)

    def _forget(self, job: BatchJob) -> None:
        delete(self._path(job))

    def _path(self, job: BatchJob) -> Path:
        return self._folder / f"{job.tag}.json"


def forget_keys(folder: Path, keys: Collection[bytes]) -> int:
    """Have no batch job's vectors of these texts filed when it has ended; how many there are. The
    service keeps what it was sent as long as it does. Hold the warehouse's `batch_jobs_lock`."""
    gone, count = {key.hex() for key in keys}, 0
    for path in list_files(folder, "*.json"):
        job = _read(path)
        rest = [key for key in job.keys if key not in gone]
        if len(rest) < len(job.keys):
            count += len(job.keys) - len(rest)
            write_atomic(path, seal(json.dumps(asdict(replace(job, keys=rest)))), durable=True)
    return count


def _read(path: Path) -> BatchJob:
    try:
        return BatchJob(**unseal(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise StoreError(
            f"{path} is damaged: {error}. Put back a copy of it, or delete it: the texts of its "
            "batch job are then submitted again."
        ) from error
