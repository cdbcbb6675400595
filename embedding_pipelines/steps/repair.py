"""Damage is noticed before a run begins its work: what is not as it was written is removed, so that
the steps make it anew, and said.

Every file of state holds a checksum of its own, and a manifest that of its shard. What can be
derived from nothing else, releases, codecs and sums of usage, is put back from its copy.
"""

import errno
from collections.abc import Iterator
from pathlib import Path

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.errors import CompressionError, StoreError
from embedding_pipelines.files import (
    delete,
    is_whole,
    list_files,
    read_json,
    read_lines,
    write_json,
    write_lines,
)
from embedding_pipelines.releases import adopt_releases
from embedding_pipelines.run import Run
from embedding_pipelines.steps.codec import COPY
from embedding_pipelines.storage.warehouse import NEW_LINE, PipelineFolder, Shards, read_table

USAGE = ("embedded_tokens", "provider_seconds", "usd")  # as a line of the history has them


def is_sound(folder: PipelineFolder) -> bool:
    """Whether every file of state is what was written; shards are not read."""
    return not damaged_states(folder)


def damaged_states(folder: PipelineFolder) -> list[Path]:
    """The files of state that are not what was written."""
    damaged = [path for path in state_files(folder) if not is_whole(path)]
    return [*damaged, folder.history] if read_lines(folder.history)[1] else damaged


def damaged_shards(run: Run) -> Iterator[tuple[Shards, str]]:
    """Shards, with their partition, that are lost or not what was written."""
    folder = run.folder
    for shards in (folder.documents, folder.chunks, folder.embeddings):
        for name in run.spec.partition_names:
            if (shards.folder / f"{name}.json").exists() and not shards.is_intact(name):
                yield shards, name


def repair(run: Run) -> None:
    """Remove or put back what is damaged; `run.progress` is told a sentence for each.

    The pipeline's lock is held. Raises OSError for what cannot be read: that is no proof of damage.
    """
    if run.warehouse.is_copy:
        return  # whose other files are those of the warehouse
    for sentence in (*_repair_states(run.folder), *_repair_rows(run), *_repair_codecs(run.folder)):
        run.progress.note(sentence)


def state_files(folder: PipelineFolder) -> list[Path]:
    """But for the files of trained models, of both lines, which are as their library writes them."""
    models = {folder.models(line) for line in ("", NEW_LINE)}
    paths = (path for path in folder.folder.rglob("*.json") if not path.name.startswith("."))
    return sorted(path for path in paths if models.isdisjoint(path.parents[1:]))


def _repair_states(folder: PipelineFolder) -> Iterator[str]:
    if adopt_releases(folder):
        outdated = [path for path in state_files(folder) if not is_whole(path)]
        for path in outdated:
            delete(path)
        yield (
            f"{folder.folder} is of an earlier version, which wrote no checksums: its releases "
            f"stay, and {len(outdated)} other files of state are made anew."
        )
    lines, damaged_lines = read_lines(folder.history)
    if damaged_lines:
        write_lines(folder.history, lines)
        yield f"{damaged_lines} damaged lines of {folder.history} are removed."
    for path in state_files(folder):
        if is_whole(path):
            continue
        delete(path)
        if path == folder.usage and lines:
            write_json(path, {name: lines[-1][name] for name in USAGE if name in lines[-1]})
            yield f"{path} was damaged; its sums go on from those of the newest release."
        elif path == folder.optimization:
            yield f"{path} was damaged and is removed; `optimize` makes it anew."
        elif path != folder.releases or not is_whole(folder.releases_copy):
            yield f"{path} was damaged and is made anew."
    for path, other in (
        (folder.releases, folder.releases_copy),
        (folder.releases_copy, folder.releases),
    ):
        if not path.exists() and (record := read_json(other)) is not None:
            write_json(path, record)
            yield f"{path} was lost or damaged and is put back from its copy."


def _repair_rows(run: Run) -> Iterator[str]:
    """Shards, and the tables of what was rejected."""
    folder, names = run.folder, run.spec.partition_names
    for shards, name in damaged_shards(run):
        delete(shards.folder / f"{name}.json")
        yield f"the {shards.folder.name} of partition {name} were damaged; made anew."
    record = read_json(folder.files) or {"files": {}}
    files = record["files"].values()
    has_rejections = folder.rejected.exists() or any(file["rejected"] for file in files)
    if has_rejections and _is_damaged(folder.rejected):
        delete(folder.rejected)
        delete(folder.files)  # all files are read again
        yield f"{folder.rejected} was lost or damaged and is made anew."
    elif "duplicates" in record and _is_damaged(folder.duplicates):
        delete(folder.duplicates)
        delete(folder.checks)  # which find the groups of vectors, and are made again
        write_json(folder.files, {**record, "whole": False})  # the step's end is done again
        yield f"{folder.duplicates} was lost or damaged and is made anew."
    rejecting = [name for name in names if _rejects(folder.embeddings, name)]
    if (rejecting or folder.rejected_texts.exists()) and _is_damaged(folder.rejected_texts):
        delete(folder.rejected_texts)
        for name in rejecting:
            folder.embeddings.forget(name)
        yield f"{folder.rejected_texts} was lost or damaged and is made anew."


def _rejects(embeddings: Shards, partition: str) -> bool:
    manifest = embeddings.manifest(partition)
    return manifest is not None and manifest.rejected > 0


def _is_damaged(path: Path) -> bool:
    """Whether a table that has rows is lost or damaged."""
    try:
        return read_table(path) is None
    except StoreError:
        return True


def _repair_codecs(folder: PipelineFolder) -> Iterator[str]:
    """Each codec and its copy."""
    for stem in sorted({path.stem for path in list_files(folder.codecs, "*-*.*")}):
        path = folder.codecs / f"{stem}.npz"
        pair = (path, path.with_suffix(COPY))
        sound = [_load(each) for each in pair]
        codec = sound[0] or sound[1]
        for each, own in zip(pair, sound, strict=True):
            if codec is None:
                delete(each)
            elif own is None:
                codec.save(each)
                yield f"{each} was lost or damaged and is put back from its copy."
        if codec is None:
            yield f"{path} was damaged and is removed; what it encoded is encoded anew."


def _load(path: Path) -> CodecChain | None:
    try:
        return CodecChain.load(path)
    except CompressionError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno not in (None, errno.ENOENT):
            raise  # not proven to be damaged
        return None
