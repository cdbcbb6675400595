"""pending: what stands between the source as it is and the newest release.

Read from files alone: no model is opened and nothing is written. Every end of a run before its
release leaves a trace here: files that were not read, partitions that were not cut or embedded, a
table that lags behind, a candidate that was not released.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from embedding_pipelines.errors import StoreError
from embedding_pipelines.files import read_json
from embedding_pipelines.releases import read_releases
from embedding_pipelines.run import Run, line_of
from embedding_pipelines.sources.base import Input
from embedding_pipelines.sources.changes import changes
from embedding_pipelines.steps.checks import current_checks
from embedding_pipelines.steps.documents import absorbed, count_waiting, joined_anew, read_files
from embedding_pipelines.steps.old_line import old_line_of
from embedding_pipelines.steps.output import is_delivered
from embedding_pipelines.steps.reading import is_pushed
from embedding_pipelines.steps.vector_store import shard_digests, table_state

SHOWN_FILES = 5


@dataclass(frozen=True)
class Pending:
    """Names of files, or of other parts of the source, and the first step that lacks what was read;
    all empty if it is released."""

    new: tuple[str, ...] = ()  # since they were last read
    changed: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    pushed: int = 0  # documents that were pushed since, or deleted
    step: str = ""
    held_back_by: tuple[str, ...] = ()  # checks that block the newest table version
    in_batch_jobs: bool = False  # texts are with the service, which answers later
    unit: str = "file"  # what a part of the source is

    @property
    def is_empty(self) -> bool:
        return not (self.new or self.changed or self.deleted or self.pushed or self.step)

    @property
    def brief(self) -> str:
        """In a few words, e.g. `2 new, 1 deleted`."""
        groups = {"new": self.new, "changed": self.changed, "deleted": self.deleted}
        counts = [f"{len(names)} {group}" for group, names in groups.items() if names]
        counts += [f"{self.pushed} pushed"] if self.pushed else []
        return ", ".join(counts) or f"{self.step} is not done"

    def __str__(self) -> str:
        groups = {"new": self.new, "changed": self.changed, "deleted": self.deleted}
        parts = []
        for group, names in groups.items():
            shown = ", ".join(names[:SHOWN_FILES]) + (" …" if len(names) > SHOWN_FILES else "")
            parts += [f"{len(names)} {group}: {shown}"] if names else []
        parts += [f"{self.pushed} pushed, in searches already"] if self.pushed else []
        if parts:
            return "; ".join(parts)
        if self.held_back_by:
            return f"the newest table is held back by {', '.join(self.held_back_by)}"
        if self.step == "output":
            return "the live release is not delivered to `output` yet"
        if self.step == "documents":
            return "a run has to read what the source holds"
        if self.step:
            return f"what was read is not released: {self.step!r} has not taken it in"
        return f"no {self.unit} has changed"


def pending(run: Run, files: Sequence[Input]) -> Pending:
    """What of the source's parts as they are now (`documents.inputs_of`) is not in the newest
    release. A rollback leaves
    nothing pending: who went back wants no run.

    Raises StoreError if a state file is damaged.
    """
    unit = run.spec.source.unit
    read = {name: entry.stamp for name, entry in read_files(run).items()}
    difference = changes(read, {file.name: file.stamp for file in files})
    if any(difference):
        new, changed, deleted = (
            tuple(name for name in names if not is_pushed(run, name)) for names in difference
        )
        is_log = any(is_pushed(run, name) for names in difference for name in names)
        newest = read_releases(run.folder).newest
        read_up_to = absorbed(run) or (newest.pushed if newest else 0)
        pushed = count_waiting(run, read_up_to) if is_log else 0
        # Segments may have been merged, or a document erased from them: there is no new word.
        step = "" if new or changed or deleted or pushed else "documents"
        return Pending(new, changed, deleted, pushed, step, unit=unit)
    step = lagging_step(run)
    if not step and (old := old_line_of(run)) is not None:
        with old:
            return pending(old, files)
    if step == "release":
        record = current_checks(run)
        blocking = (check.name for check in record.checks if check.blocks) if record else ()
        return Pending(step=step, held_back_by=tuple(blocking), unit=unit)
    awaits_jobs = run.spec.model.uses_batch_jobs and run.folder.batch_jobs.exists()
    in_batch_jobs = step == "embeddings" and awaits_jobs
    return Pending(step=step, in_batch_jobs=in_batch_jobs, unit=unit)


def lagging_step(run: Run) -> str:
    """The first step that has not taken in the files that were read; empty if they are released."""
    folder = run.folder
    if not (read_json(folder.files) or {}).get("whole") or joined_anew(run):
        return "documents"
    for name in run.spec.partition_names:
        documents, chunks = folder.documents.manifest(name), folder.chunks.manifest(name)
        if documents is None:
            return "documents"
        if chunks is None or chunks.inputs != documents.digest:
            return "chunks"
    if folder.embed_anew.exists():  # a run that makes all vectors anew has not reached its end
        return "embeddings"
    try:
        digests = shard_digests(run)
    except StoreError:
        return "embeddings"
    state, releases = table_state(run), read_releases(folder)
    newest = releases.newest
    if run.spec.migration is not None:  # the other line's may be newer
        newest = next(reversed(releases.of_line(line_of(run.spec, run.is_old_line))), None)
    if state is None or state.partitions != digests:
        return "vector_store"
    if newest is None or (newest.table, newest.version) != (state.table, state.version):
        return "release"
    is_live = releases.live == newest.number
    if run.spec.output is not None and is_live and not is_delivered(run):
        return "output"
    return ""
