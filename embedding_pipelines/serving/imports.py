"""`import`: a bundle becomes the live release of this home, and its shards what the next run goes on
from. What was live stays for a rollback.

All is unpacked beside the warehouse and proven there first. Then it is moved in, the pointer last:
whatever fails before leaves what was live.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.embedding.embed import embed_all
from embedding_pipelines.embedding.refill import file_vectors
from embedding_pipelines.errors import BundleError
from embedding_pipelines.files import list_names, read_json, temporary_folder, write_json
from embedding_pipelines.forget.forget import forget
from embedding_pipelines.inference.weights import file_sha256
from embedding_pipelines.progress import Progress, Silent
from embedding_pipelines.providers.base import EmbeddingModel
from embedding_pipelines.quality.checks.provider_is_unchanged import CANARIES
from embedding_pipelines.ranking import nearest
from embedding_pipelines.releases import (
    Release,
    Releases,
    append_history,
    live_release,
    newest_number,
    read_releases,
    tagged_versions,
    write_releases,
)
from embedding_pipelines.remote import writing
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import DOCUMENT_DIGEST, IMAGE
from embedding_pipelines.serving.bundle import (
    HOME,
    STATE,
    STEPS,
    Description,
    released,
    unpack,
    verify,
)
from embedding_pipelines.serving.permissions import Permissions
from embedding_pipelines.spec.load import pipeline_file, pipeline_files
from embedding_pipelines.steps.base import row_values
from embedding_pipelines.steps.codec import COPY
from embedding_pipelines.steps.spill import contents_of
from embedding_pipelines.steps.vector_store import unused_table
from embedding_pipelines.storage.forgotten import Forgotten, read_forgotten, write_forgotten
from embedding_pipelines.storage.pushed import pushed_log
from embedding_pipelines.storage.warehouse import PipelineFolder, Warehouse


@dataclass
class Imported:
    """What a bundle has become here."""

    pipeline: str
    release: int  # live now
    before: int | None  # live until now
    rows: int
    least_cosine: float  # of the golden vectors, between the machine that made it and this one
    goes_on: bool  # whether the next run goes on from its shards
    forgotten: int = 0  # documents that were left out, since this home has forgotten them
    files: list[str] = field(default_factory=list)  # that are new below the home folder
    notes: list[str] = field(default_factory=list)


def import_bundle(
    warehouse: Warehouse,
    source: Path,
    progress: Progress | None = None,
    *,
    to_serve: bool = False,
    name: str | None = None,
    permissions: Permissions | None = None,
) -> Imported:
    """Take a bundle up: an archive or a folder. `to_serve`: its release alone, without the pipeline
    file and the shards. `name`: the pipeline that it has to be of. `permissions`: of a bundle that
    somebody else has sent.

    Documents that this home has forgotten are left out. Raises BundleError for a bundle that is
    damaged, malicious or does not reproduce here, BusyError while the pipeline runs. Nothing has
    changed then.
    """
    progress = progress or Silent()
    with temporary_folder(warehouse.root, ".import-") as draft:
        description = unpack(source, draft)
        if name not in (None, description.pipeline):
            raise BundleError(f"The bundle is of {description.pipeline!r}, not of {name!r}.")
        release = released(draft, description, permissions)
        own = Warehouse(draft / HOME)
        with release.spec.model.open(own.home) as model:
            least = verify(draft, description, release, model)
            folder = warehouse.pipeline(description.pipeline)
            with (
                folder.lock("run", timeout_seconds=0),
                folder.lock(timeout_seconds=0),
                writing(warehouse, description.pipeline, progress),
            ):
                taker = _Taker(warehouse, folder, own, description, to_serve)
                return taker.take(release, model, least)


class _Taker:
    """Moves one proven bundle into a home; the pipeline's locks are held."""

    def __init__(
        self,
        warehouse: Warehouse,
        folder: PipelineFolder,
        own: Warehouse,
        description: Description,
        to_serve: bool,
    ) -> None:
        self.warehouse, self.folder, self.own, self.description = (
            warehouse,
            folder,
            own,
            description,
        )
        self.name = description.pipeline
        self.there = own.pipeline(self.name)  # in the bundle
        self.goes_on = description.has_shards and not to_serve
        self.to_serve = to_serve

    def take(self, release: Release, model: EmbeddingModel, least: float) -> Imported:
        before = read_releases(self.folder)
        list_here = self.warehouse.forgotten / f"{self.name}.json"
        here, theirs = (
            read_forgotten(list_here),
            read_forgotten(self.own.forgotten / f"{self.name}.json"),
        )
        count = self._leave_out(release, model, here)
        release = live_release(self.there)
        result = Imported(
            self.name, 0, before.live, release.rows, round(least, 6), self.goes_on, count
        )
        self._place_files(result)
        if theirs and self.goes_on:
            write_forgotten(list_here, here.joined(theirs))
        release = release.model_copy(update={"pushed": self._take_pushed(here)})
        placed = self._place_table(release, before)
        self._try(placed, model)
        if self.goes_on:
            self._place_state(release, placed)
        self._release(placed, before)
        if self.goes_on:
            partitions = release.spec.partition_names
            file_vectors(self.folder, EmbeddingCache(self.warehouse.cache), partitions)
        result.release = placed.number
        return result

    def _leave_out(self, release: Release, model: EmbeddingModel, here: Forgotten) -> int:
        """Erase from the bundle what this home has forgotten; how many documents."""
        if not here:
            return 0
        ids = set(self._forgotten_ids(release, here))
        if not ids:
            return 0
        with Run(release.spec, self.own, model=model) as run:
            receipt = forget(run, ids, [])
        if receipt.left:
            raise BundleError(
                f"The bundle holds documents that {self.name!r} has forgotten here, and they are left "
                f"in {', '.join(receipt.left)}. Nothing of it was taken over."
            )
        return receipt.documents

    def _forgotten_ids(self, release: Release, here: Forgotten) -> Iterator[str]:
        source = release.spec.source
        is_by_content = source.has_images  # the table has their pixels' digests
        table = release.spec.store.table(self.there.tables, release.table)
        columns = ["document_id", *([IMAGE] if source.has_images else [])]
        for batch in table.scan(columns, version=release.version):
            for name, *images in row_values(batch, *columns):
                pixels = [bytes.fromhex(image) for image in images if image]
                if here.has("id", name) or any(here.has("content", each) for each in pixels):
                    yield name
        columns = ["document_id", "source_file", DOCUMENT_DIGEST]
        columns += [IMAGE] if source.has_images else []
        for partition in release.spec.partition_names if self.description.has_shards else ():
            for batch in self.there.documents.read(partition, columns):
                is_by_content = True
                contents = contents_of(source.has_images, batch, batch[DOCUMENT_DIGEST].to_pylist())
                rows = row_values(batch, "document_id", "source_file")
                for (name, file), content in zip(rows, contents, strict=True):
                    is_content = source.id is None and here.has("content", content)
                    if is_content or here.has("id", name) or here.has("file", file):
                        yield name
        if source.id is None and not is_by_content:
            raise BundleError(
                f"{self.name!r} has forgotten documents here, and this bundle cannot tell whether it "
                "holds them: it has neither source.id nor shards. Bundle with the shards, and import "
                "it."
            )

    def _place_files(self, result: Imported) -> None:
        """The model's files and the pipeline file. Raises BundleError, before any is written, for
        one that is there with other content."""
        home, new = self.warehouse.home, list[str]()
        for name in self.description.model.files:
            path = home / name
            if not path.exists():
                new.append(name)
            elif not path.is_file() or file_sha256(path) != file_sha256(self.own.home / name):
                raise BundleError(
                    f"{path} is another file than the model's in the bundle. Move it away, or import "
                    "into another home (--home). Nothing of the bundle was taken over."
                )
        files = {path.stem: path for path in pipeline_files(self.own.home)}
        theirs = files.get(self.name)
        mine = pipeline_file(self.name, home)
        if theirs is not None and not self.to_serve:
            if mine is None:
                new.append(theirs.relative_to(self.own.home).as_posix())
            elif mine.read_bytes() != theirs.read_bytes():
                result.notes.append(
                    f"{mine} stays as it is: the bundle's is another one. The next run goes by yours."
                )
        for name in new:
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.own.home / name, home / name)
        result.files = sorted(new)

    def _take_pushed(self, here: Forgotten) -> int:
        """Take over what was pushed there, where nothing was pushed of the same document here and it
        is not forgotten here; the number up to which the release holds what the log here now has.
        """
        log, theirs = pushed_log(self.warehouse, self.name), pushed_log(self.own, self.name)
        log.fetch()
        words = log.words()
        changes = [
            change
            for _, change in theirs.changes()
            if change.id not in words and not (here and here.has("id", change.id))
        ]
        if changes and self.goes_on:
            log.append(changes)
        return 0 if words else log.last()

    def _place_table(self, release: Release, before: Releases) -> Release:
        """The release with its table and codec in their places here, under a number and a name that
        no other has."""
        store, tables, name = release.spec.store, self.warehouse.tables, release.table
        if any(entry.startswith(f"{name}.") for entry in list_names(tables)):
            _, name = unused_table(store, tables, release.table)
        tables.mkdir(parents=True, exist_ok=True)
        # The table's folder last: without it, the rest counts as lost.
        paths = sorted(self.there.tables.glob(f"{release.table}.*"), key=lambda path: path.is_dir())
        for path in paths:
            shutil.move(path, tables / f"{name}{path.name.removeprefix(release.table)}")
        codec = self.folder.codecs / release.codec
        if not codec.exists():
            codec.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.there.codecs / release.codec, codec)
            shutil.copyfile(codec, codec.with_suffix(COPY))
        numbers = [newest_number(self.folder), *(entry.number for entry in before.releases)]
        number = max(numbers) + 1 if max(numbers) else release.number
        changes = {"table": name, "number": number, "released_at": datetime.now(UTC)}
        return release.model_copy(update=changes)

    def _try(self, placed: Release, model: EmbeddingModel) -> None:
        """Search the table where it now is, before anybody else does. Raises what that raises, with
        nothing left of it."""
        store, tables = placed.spec.store, self.warehouse.tables
        table = store.table(tables, placed.table)
        try:
            codec = CodecChain.load(self.folder.codecs / placed.codec)
            vector = embed_all([CANARIES[0]], model, None, "query").vectors[0]
            if np.isfinite(vector).all():
                nearest(table, codec, vector, 1, None, placed.version)
            if table.rows(placed.version) != placed.rows:
                raise BundleError("The bundle's table lost rows on its way. Try again.")
        except BaseException:
            store.drop(tables, placed.table)
            raise

    def _place_state(self, release: Release, placed: Release) -> None:
        """Shards and records, in place of those that were here."""
        for step in STEPS:
            shutil.rmtree(self.folder.folder / step, ignore_errors=True)
            if (self.there.folder / step).exists():
                shutil.move(self.there.folder / step, self.folder.folder / step)
        for name in STATE:
            source, target = self.there.folder / name, self.folder.folder / name
            if source.exists() and not name.startswith("embeddings/"):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
        for source, target in (
            (self.there.table_state, self.folder.table_state),
            (self.there.checks, self.folder.checks),
        ):
            target.unlink(missing_ok=True)
            if (record := read_json(source)) is not None:
                write_json(target, record | {"table": placed.table})
        figures = self.there.quality / f"{release.table}-{release.version}.json"
        if figures.exists():
            self.folder.quality.mkdir(parents=True, exist_ok=True)
            place = self.folder.quality / f"{placed.table}-{placed.version}.json"
            shutil.copyfile(figures, place)

    def _release(self, placed: Release, before: Releases) -> None:
        """Move the pointer, and drop what no release needs any more."""
        keep = [*before.releases, placed][-placed.spec.store.keep_releases :]
        releases = Releases(live=placed.number, releases=keep)
        tables = self.warehouse.tables
        tags = tagged_versions(releases, placed.table)
        placed.spec.store.table(tables, placed.table).tag(tags)
        write_releases(self.folder, releases)
        append_history(self.folder, placed, {})
        drop_tables(self.warehouse, self.folder, placed, releases)


def drop_tables(
    warehouse: Warehouse, folder: PipelineFolder, release: Release, releases: Releases
) -> None:
    """Remove a pipeline's tables that neither a release nor the last run needs."""
    store, state = release.spec.store, read_json(folder.table_state) or {}
    in_use = {entry.table for entry in releases.releases} | {state.get("table")}
    for name in store.names(warehouse.tables):
        if name not in in_use and name.rpartition("-")[0] == release.spec.name:
            store.drop(warehouse.tables, name)
