"""Garbage: what lies on the disk for a pipeline and that neither a release that can be gone back to,
nor the newest candidate, nor the next run needs.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from embedding_pipelines.files import abandoned_drafts, delete, list_files, read_json
from embedding_pipelines.releases import read_releases
from embedding_pipelines.run import Run
from embedding_pipelines.steps.codec import COPY
from embedding_pipelines.steps.documents import READING
from embedding_pipelines.steps.vector_store import other_state, table_state
from embedding_pipelines.storage.warehouse import NEW_LINE
from embedding_pipelines.stores.base import Table

CANDIDATES = "candidates"  # the folder in which `optimize` builds its tables


@dataclass(frozen=True)
class Garbage:
    """A file or folder that can go."""

    what: str  # table, version, shard, codec, model or leftover
    path: Path
    size_bytes: int


def find_garbage(run: Run) -> list[Garbage]:
    """What nobody needs of a pipeline; to be called by whoever holds its locks, since a file may
    belong to a run that is at work. Raises StoreError if its records are damaged: then nobody can
    know what they need."""
    garbage = [
        *_tables(run),
        *(
            ("version", path)
            for table, versions in _tables_in_use(run)
            for path in table.garbage(versions)
        ),
        *_shards(run),
        *_codecs(run),
        *(("model", path) for path in unused_models(run)),
        *_leftovers(run),
    ]
    return [Garbage(what, path, _size(path)) for what, path in garbage]


def delete_garbage(run: Run) -> list[Garbage]:
    """Delete it; what it was. As `find_garbage`."""
    garbage = find_garbage(run)
    for entry in garbage:
        if entry.what == "table":
            run.spec.store.drop(run.warehouse.tables, entry.path.stem)
        elif entry.path.is_dir():
            shutil.rmtree(entry.path)
        elif entry.what != "version":
            delete(entry.path)
    for table, versions in _tables_in_use(run):
        table.delete_garbage(versions)
    return garbage


def _tables_in_use(run: Run) -> Iterator[tuple[Table, set[int]]]:
    """The tables that stay, with the versions that do."""
    state, versions = table_state(run), dict[str, set[int]]()
    for release in read_releases(run.folder).releases:
        versions.setdefault(release.table, set()).add(release.version)
    for each in filter(None, (state, other_state(run))):
        versions.setdefault(each.table, set()).add(each.version)
    for name, numbers in versions.items():
        yield run.spec.store.table(run.warehouse.tables, name), numbers


def _tables(run: Run) -> Iterator[tuple[str, Path]]:
    store, folder = run.spec.store, run.warehouse.tables
    staying = {table.folder_of_files for table, _ in _tables_in_use(run)}
    for name in store.names(folder):
        path = store.table(folder, name).folder_of_files
        if name.rpartition("-")[0] == run.spec.name and path not in staying:
            yield "table", path


def _shards(run: Run) -> Iterator[tuple[str, Path]]:
    for shards in (run.folder.documents, run.folder.chunks, run.folder.embeddings):
        for path in shards.unnamed():
            yield "shard", path


def _codecs(run: Run) -> Iterator[tuple[str, Path]]:
    """Those that no release names and that are not in force for any options."""
    folder = run.folder.codecs
    staying = {release.codec for release in read_releases(run.folder).releases}
    for line in ("", NEW_LINE):
        in_force = run.warehouse.pipeline(run.spec.name, line).codecs_in_force
        staying |= set((read_json(in_force) or {}).values())
    for path in list_files(folder, "*-*.*"):
        if path.suffix in (".npz", COPY) and path.with_suffix(".npz").name not in staying:
            yield "codec", path


def unused_models(run: Run) -> Iterator[Path]:
    """Those that were trained, and that neither a release nor the next run uses; and checkpoints of
    a model that is trained no more."""
    folder, trains = run.folder.model.parent, run.spec.model.trains
    staying = {
        getattr(entry.spec.model, "trained", None) for entry in read_releases(run.folder).releases
    }
    if trains:
        staying.add((read_json(run.folder.model) or {}).get("folder"))
    names = {str(name).rpartition("/")[2] for name in staying}
    for path in folder.glob("*/"):
        if path.name not in names and not (path.name.startswith(".") and trains):
            yield path


def _leftovers(run: Run) -> Iterator[tuple[str, Path]]:
    """What processes left that were killed."""
    root = run.folder.folder
    for folder in (root, *root.glob("*/"), run.warehouse.pushed / run.spec.name):
        for path in abandoned_drafts(folder):
            yield "leftover", path
    for path in abandoned_drafts(run.warehouse.tables):
        if path.name.rpartition("-")[0] == f".{run.spec.name}":
            yield "leftover", path
    is_in_use = run.spec.migration is not None or read_releases(run.folder).of_line(NEW_LINE)
    lines = [] if is_in_use else [run.folder.new_line]
    for path in (*run.folder.documents.folder.glob(f"{READING}*/"), root / CANDIDATES, *lines):
        if path.is_dir():
            yield "leftover", path


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if file.is_file())
