"""Deletes what a pipeline has produced, and its file."""

import contextlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from embedding_pipelines.deployments import read_deployments
from embedding_pipelines.errors import ConfigError, StoreError
from embedding_pipelines.files import delete, list_files
from embedding_pipelines.progress import Silent
from embedding_pipelines.releases import read_releases
from embedding_pipelines.remote import fetch_state, writing
from embedding_pipelines.spec.load import find_pipeline, pipeline_files
from embedding_pipelines.spec.pipeline import NAME
from embedding_pipelines.steps.output import delete_outputs, places_of
from embedding_pipelines.storage.pushed import pushed_log
from embedding_pipelines.storage.warehouse import Warehouse


@dataclass(frozen=True)
class Deletion:
    """What goes when a pipeline is deleted. Cached vectors, its number and what it has forgotten
    stay."""

    pipeline: str
    releases: list[int]
    paths: list[Path]  # files and folders
    size_bytes: int
    outputs: list[str] = field(default_factory=list)  # places that it delivered to


def plan_deletion(home: Path, name: str, keep_file: bool = False) -> Deletion:
    """What `delete_pipeline` would delete. ConfigError if there is no such pipeline, or if it is
    deployed."""
    warehouse = Warehouse(home)
    folder = warehouse.pipeline(name)
    files = [path for path in pipeline_files(home) if path.stem == name]
    is_name = NAME.fullmatch(name) is not None  # else a file that could never run
    if not files and not (is_name and folder.folder.exists()):
        find_pipeline(name, home)  # raises
    if is_name:
        fetch_state(warehouse, name)  # another machine may have run it
    paths: list[Path] = []
    if is_name:  # what a name is found by goes last, so that a deletion that was stopped goes on
        paths += [
            *list_files(warehouse.tables, f"{name}-*"),  # with their checksums
            *list_files(warehouse.root / "exports", f"{name}-*"),
            warehouse.reports / f"{name}.html",
            warehouse.comparison(name),
            folder.folder,
        ]
        # With its file a pipeline keeps what was pushed to it, since that is a source.
        paths += [] if keep_file else [warehouse.pushed / name]
    paths += [] if keep_file else files
    paths = [path for path in paths if path.exists()]
    if places := [deployment.endpoint for deployment in read_deployments(folder)]:
        raise ConfigError(
            f"Pipeline {name!r} is deployed to {', '.join(places)}, which would be forgotten. Say "
            f"`embedding-pipelines undeploy {name} --endpoint {places[0]}` first."
        )
    if not paths:
        raise ConfigError(f"There is nothing to delete: {name!r} has never run.")
    releases: list[int] = []
    with contextlib.suppress(StoreError):  # damaged, and about to go
        releases = [release.number for release in read_releases(folder).releases]
    return Deletion(name, releases, paths, sum(map(_size, paths)), places_of(folder))


def delete_pipeline(home: Path, name: str, keep_file: bool = False) -> Deletion:
    """Delete a pipeline: its file, unless `keep_file`, and its rows, tables, releases, exports,
    report and what it delivered to its `output`.

    Vectors stay in the embedding cache, so that a pipeline made again embeds nothing twice. What was
    published of it in a bucket goes, too. Raises BusyError while it runs, ConfigError if there is
    no such pipeline, BucketError if the bucket does not answer.
    """
    plan_deletion(home, name, keep_file)  # before a lock makes a folder
    warehouse = Warehouse(home)
    folder = warehouse.pipeline(name)
    with (
        folder.lock("run", timeout_seconds=0),
        folder.lock(timeout_seconds=0),
        writing(warehouse, name, Silent()) as writer,
    ):
        if writer is not None:
            writer.delete()
        deletion = plan_deletion(home, name, keep_file)
        delete_outputs(warehouse, name)
        if not keep_file:
            pushed_log(warehouse, name).delete_shared()
        for record in (folder.releases_copy, folder.releases):
            delete(record)  # first, so that nothing is searched that is half gone
        for path in deletion.paths:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                delete(path)
    return deletion


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if file.is_file())
