"""Tests what a pipeline depends on: its file, source and model, and every byte that was stored for
it.

`validate` costs nothing and asks nobody; this sends two short texts to the model, as a document and
as a query, and reads all files of the pipeline. It repairs nothing: the next run does, or `repair`.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedding_pipelines.activity import last_activity
from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.embedding.budget import Usage
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.embedding.request import Sender
from embedding_pipelines.embedding.sanity import probe
from embedding_pipelines.errors import (
    BucketError,
    BusyError,
    CompressionError,
    ConfigError,
    EmbeddingPipelinesError,
    SpaceMismatchError,
    StoreError,
    counted,
    describe_os_error,
)
from embedding_pipelines.files import list_files
from embedding_pipelines.providers.base import InputType
from embedding_pipelines.releases import Release, read_releases
from embedding_pipelines.remote import fetch_state, is_shared, open_remote, refresh
from embedding_pipelines.run import Run
from embedding_pipelines.spec.load import Draft
from embedding_pipelines.steps.codec import COPY
from embedding_pipelines.steps.documents import inputs_of
from embedding_pipelines.steps.embeddings import quarantine_note
from embedding_pipelines.steps.garbage import find_garbage
from embedding_pipelines.steps.pending import pending
from embedding_pipelines.steps.repair import damaged_shards, damaged_states, state_files
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines.validate import check_file

ATTEMPTS = 2  # of the probe: a person waits


@dataclass(frozen=True)
class Finding:
    """How one thing stands, in a sentence."""

    what: str
    is_well: bool
    sentence: str
    figures: Mapping[str, Any] = field(default_factory=dict)


def examine(draft: Draft, warehouse: Warehouse) -> Iterator[Finding]:
    """Every test of a pipeline, as it is done. Nothing is raised for what is not well."""
    try:
        lines, doubts = check_file(draft, warehouse)
        yield Finding("file", not lines, "\n".join([*lines, *doubts]) or "valid")
    except OSError as error:  # of what it names
        yield Finding("file", False, describe_os_error(error))
    if draft.spec is None:
        return
    with Run(draft.spec, warehouse) as run:
        if _is_shared(warehouse):
            yield _finding("bucket", _bucket, run)
        for what, test in (
            ("source", _source),
            ("model", _model),
            ("run", _run),
            ("state", _state),
            ("rows", _rows),
            ("releases", _releases),
            ("garbage", _garbage),
        ):
            yield _finding(what, test, run)


def examine_cache(warehouse: Warehouse) -> Finding:
    """The embedding cache, which all pipelines of a home share: every vector is compared with its
    checksum."""
    cache = EmbeddingCache(warehouse.cache, read_only=True)
    try:
        damaged, count = len(cache.damage()), len(cache)
    except StoreError as error:
        return Finding("cache", False, f"{error} `doctor --repair` does that.")
    except OSError as error:
        return Finding("cache", False, describe_os_error(error))
    if damaged:
        return Finding(
            "cache",
            False,
            f"{counted(damaged, 'vector')} of {count:,} in {cache.path} are damaged. They are never "
            "used, and embedded again where a run needs them; `doctor --repair` puts back what a "
            "shard or table still has.",
        )
    return Finding("cache", True, f"{counted(count, 'vector')} as written")


def _is_shared(warehouse: Warehouse) -> bool:
    try:
        return is_shared(warehouse)
    except (ConfigError, OSError):  # which is told then
        return True


def _finding(what: str, test: Callable[[Run], str], run: Run) -> Finding:
    try:
        return Finding(what, True, test(run))
    except EmbeddingPipelinesError as error:
        return Finding(what, False, str(error))
    except OSError as error:
        return Finding(what, False, describe_os_error(error))


class _NotWell(EmbeddingPipelinesError):
    """A test that has failed, with its sentence."""


def _bucket(run: Run) -> str:
    """The bucket answers, and this machine has what is in it."""
    if words := refresh(run.warehouse, run.spec.name):
        raise BucketError(words)
    words = fetch_state(run.warehouse, run.spec.name) or ""
    remote = open_remote(run.warehouse, run.spec.name)
    if remote is not None and (lost := remote.lost_objects()):
        raise BucketError(
            f"{words}; {counted(len(lost), 'object')} that it names are lost or damaged, as "
            f"{next(iter(lost))}. `doctor --repair` puts back what this machine has."
        )
    return words


def _source(run: Run) -> str:
    files = inputs_of(run)
    size = sum(file.size_bytes for file in files) / 1e6
    sizes = f", {size:,.1f} MB" if size else ""
    return f"{counted(len(files), run.spec.source.unit)}{sizes}; {pending(run, files)}"


def _model(run: Run) -> str:
    """The model answers, and its space is that of the live release."""
    model, usage = run.model, Usage()
    if run.spec.model.trains:
        return f"{run.spec.model.kind} is trained by a run"
    started = time.perf_counter()
    inputs: tuple[InputType, ...] = ("document", "query")
    for input_type in inputs:
        probe(Sender(model), input_type, usage, ATTEMPTS)
    seconds = time.perf_counter() - started
    releases = read_releases(run.folder)
    live = releases.get(releases.live)
    is_left = run.spec.migration is not None and live is not None and not live.line
    if live is not None and not is_left and live.space.with_codec(None).id != model.space.id:
        raise SpaceMismatchError(
            f"{model.space} answers, but release {live.number} is of {live.space}. Searches use the "
            "model of the release; the next run builds a table of the new one."
        )
    space = model.space
    size = f"{space.dimensions:,} dimensions"
    return f"{space.provider}:{space.model} answers with {size}, in {seconds:.1f} s with loading"


def _run(run: Run) -> str:
    """What is at work, and how the last run ended if that was not well."""
    activity = last_activity(run)
    if activity is None or not activity.state:
        return "none is under way, and none ended early"
    if activity.state == "running":
        return f"under way: {activity}"
    remedy = f"`embedding-pipelines run {run.spec.name}` goes on from there."
    words = "" if activity.state == "stopped" else f". Mend that: {remedy}"
    raise _NotWell(f"{activity}{words}")


def _garbage(run: Run) -> str:
    """What nobody needs is no fault; `clean` deletes it."""
    try:
        with run.folder.lock_to_read():
            garbage = find_garbage(run)
    except BusyError:
        return "not looked for: another process is at work"
    if not garbage:
        return "none"
    size = sum(entry.size_bytes for entry in garbage) / 1e6
    first = garbage[0].path
    return (
        f"{counted(len(garbage), 'file')} or folders that nothing needs, {size:,.1f} MB, as {first}. "
        "`embedding-pipelines clean` deletes them."
    )


def _state(run: Run) -> str:
    folder = run.folder
    if damaged := damaged_states(folder):
        raise _NotWell(f"damaged: {', '.join(map(str, damaged))}. The next run makes them anew.")
    pairs = [(folder.releases, folder.releases_copy)]
    names = {path.stem for path in list_files(folder.codecs, "*-*.*")}
    pairs += [(folder.codecs / f"{name}.npz", folder.codecs / f"{name}{COPY}") for name in names]
    lost = [path for pair in pairs for path in pair if path.exists() != any(map(Path.exists, pair))]
    if lost:
        raise _NotWell(
            f"lost: {', '.join(map(str, lost))}. The next run, or `doctor --repair`, puts back each "
            "from its other copy."
        )
    return f"{counted(len(state_files(run.folder)), 'file')} as written"


def _rows(run: Run) -> str:
    names, lines = run.spec.partition_names, [run]
    if run.spec.migration is not None:
        lines.append(Run(run.spec, run.warehouse, is_old_line=True))
    damaged = [
        f"{shards.folder.name} of {name}" for line in lines for shards, name in damaged_shards(line)
    ]
    if damaged:
        raise _NotWell(f"damaged: {', '.join(damaged)}. The next run makes them anew.")
    if aside := quarantine_note(run):
        raise _NotWell(f"put aside: {aside}")
    folders = [line.folder for line in lines]
    count = sum(
        len(shards.manifests(names))
        for folder in folders
        for shards in (folder.documents, folder.chunks, folder.embeddings)
    )
    return f"{count:,} shards are as they were written"


def _releases(run: Run) -> str:
    """All files of every release that can be gone back to. Older ones that cannot be are no fault
    as long as the live and the newest are whole: no run makes them anew."""
    releases, name = read_releases(run.folder), run.spec.name
    if not releases.releases:
        return "none yet"
    newest, live = releases.releases[-1].number, releases.live
    damaged: dict[str, list[int]] = {}  # the releases by what each of them lacks
    repairable = False
    for release in releases.releases:
        what = release.spec.store.table(run.warehouse.tables, release.table).damage(release.version)
        if what is None:
            what = _codec_damage(run, release)
            path = run.folder.codecs / release.codec
            repairable |= what is not None and any(
                each.exists() for each in (path, path.with_suffix(COPY))
            )
        if what is not None:
            damaged.setdefault(what, []).append(release.number)
    lost = {number for numbers in damaged.values() for number in numbers}
    whole = [entry.number for entry in releases.releases if entry.number not in lost]
    words = "; ".join(f"{_in_words(numbers)}: {what}" for what, numbers in damaged.items())
    if newest in lost:
        raise _NotWell(
            f"{words}. The next run makes the newest release anew; earlier ones on damaged files "
            "cannot be gone back to."
        )
    if live in lost:
        raise _NotWell(
            f"{words}. Release {newest} is whole: `embedding-pipelines rollback {name} --to "
            f"{newest}` makes it live."
        )
    if repairable:
        raise _NotWell(f"{words}. The next run puts back what has a whole copy.")
    fine = f"{_listed(whole)}: tables and codecs are as they were written; live is {live}"
    if not damaged:
        return fine
    return (
        f"{fine}. {_in_words(sorted(lost))} cannot be gone back to ({words}); no run makes that anew, "
        f"and they leave with the next releases (keep_releases: {run.spec.store.keep_releases})"
    )


def _codec_damage(run: Run, release: Release) -> str | None:
    try:
        CodecChain.load(run.folder.codecs / release.codec)
    except CompressionError as error:
        return str(error)
    return None


def _in_words(numbers: Sequence[int]) -> str:
    return f"release{'' if len(numbers) == 1 else 's'} {_listed(numbers)}"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
