"""Bundles that are sent to a server: kept in parts on the disk, proven, then switched to.

Each has a folder below the warehouse. What was received for a pipeline is on record beside it, so
that it can be taken back as a whole.
"""

import hashlib
import re
import shutil
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from embedding_pipelines.delete import delete_pipeline
from embedding_pipelines.errors import EmbeddingPipelinesError
from embedding_pipelines.files import list_names, read_json, write_json
from embedding_pipelines.progress import Silent
from embedding_pipelines.releases import Releases, read_releases, write_releases
from embedding_pipelines.remote import writing
from embedding_pipelines.serving.imports import Imported, drop_tables, import_bundle
from embedding_pipelines.serving.permissions import Permissions
from embedding_pipelines.serving.wire import BadRequest, Conflict, ContentTooLarge, NotFound
from embedding_pipelines.spec.pipeline import NAME
from embedding_pipelines.storage.warehouse import Warehouse

FOLDER = "uploads"  # below the warehouse
BUNDLE = "bundle.tar"
ID = re.compile(r"[0-9a-f]{32}")
MAX_PART_BYTES = 8 << 20
MAX_BUNDLE_BYTES = 1 << 40
SPARE = 2.2  # times its size that a bundle needs on the disk: as it comes, unpacked, and a rest
MAX_OPEN = 4  # uploads at once
KEPT_SECONDS = 6 * 3600.0  # that an upload may take, and that its end is on record

Status = Literal["receiving", "proving", "live", "failed"]


@dataclass(frozen=True)
class Upload:
    """One bundle on its way."""

    id: str
    pipeline: str
    size_bytes: int
    sha256: str
    status: Status
    received_bytes: int = 0
    error: str = ""
    release: int | None = None  # that it has become here
    least_cosine: float | None = None


class Uploads:
    """Those of one home. Any number of threads may use it; what is proven is known to this process
    alone, and counts as failed when it ends."""

    def __init__(self, warehouse: Warehouse, permissions: Permissions) -> None:
        self.warehouse, self.folder = warehouse, warehouse.root / FOLDER
        self._permissions = permissions
        self._proving = set[str]()
        self._lock = threading.Lock()

    def begin(self, pipeline: str, size_bytes: int, sha256: str) -> Upload:
        """Room for a bundle. Raises ContentTooLarge if there is none, Conflict for too many."""
        if not NAME.fullmatch(pipeline):
            raise BadRequest(f"{pipeline[:80]!r} is no name of a pipeline.")
        with self._lock:
            under_way = self._sweep()
            self.folder.mkdir(parents=True, exist_ok=True)
            if under_way >= MAX_OPEN:
                raise Conflict(
                    f"{MAX_OPEN} bundles are being received. Try again when one of them has ended."
                )
            free = shutil.disk_usage(self.folder).free
            if size_bytes > MAX_BUNDLE_BYTES or size_bytes * SPARE > free:
                raise ContentTooLarge(
                    f"A bundle of {size_bytes:,} bytes needs {round(SPARE * size_bytes):,} on the "
                    f"server's disk, which has {free:,}. Free some space there."
                )
            upload = Upload(uuid.uuid4().hex, pipeline, size_bytes, sha256, "receiving")
            (self.folder / upload.id).mkdir()
            (self.folder / upload.id / BUNDLE).touch()
            self._write(upload)
        return upload

    def append(self, id: str, offset: int, data: bytes) -> Upload:
        """Add a part, which begins where the last one ended; one that is there already is left
        out."""
        with self._lock:
            upload = self.find(id)
            if upload.status != "receiving":
                raise Conflict(f"The upload is {upload.status}; it takes no more.")
            path, size = self.folder / id / BUNDLE, upload.received_bytes
            if offset + len(data) > upload.size_bytes or len(data) > MAX_PART_BYTES:
                raise ContentTooLarge(
                    f"The part ends behind the {upload.size_bytes:,} bytes that were announced, or "
                    f"is larger than {MAX_PART_BYTES:,}."
                )
            if offset == size:
                with path.open("ab") as file:
                    file.write(data)
            elif offset + len(data) > size:
                raise Conflict(f"The upload has {size:,} bytes; send it from there.")
            return self.find(id)

    def begin_proof(self, id: str) -> Upload:
        """Nothing more comes. Raises Conflict if something is missing, or it is proven already."""
        with self._lock:
            upload = self.find(id)
            if upload.status != "receiving" or upload.received_bytes != upload.size_bytes:
                raise Conflict(
                    f"The upload is {upload.status}, and has {upload.received_bytes:,} of "
                    f"{upload.size_bytes:,} bytes."
                )
            self._proving.add(id)
            self._write(Upload(**{**vars(upload), "status": "proving"}))
            return self.find(id)

    def prove(self, id: str) -> Upload:
        """Unpack, compare all that can be compared, and make it live; as `import_bundle`. What is
        wrong is on record in the upload."""
        upload = self.find(id)
        path = self.folder / id / BUNDLE
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != upload.sha256:
                raise BadRequest("The bundle did not arrive as it was sent. Send it again.")
            imported = self._take_up(upload, path)
            changes: dict[str, Any] = {
                "status": "live",
                "release": imported.release,
                "least_cosine": imported.least_cosine,
            }
        except (EmbeddingPipelinesError, OSError) as error:
            changes = {"status": "failed", "error": str(error)}
        except BaseException:
            changes = {"status": "failed", "error": "The server failed on it. Its log says why."}
            raise
        finally:
            path.unlink(missing_ok=True)
            self._write(Upload(**{**vars(upload), **changes}))
            self._proving.discard(id)
        return self.find(id)

    def find(self, id: str) -> Upload:
        """Raises NotFound."""
        if not ID.fullmatch(id) or (record := read_json(self.folder / id / "upload.json")) is None:
            raise NotFound("There is no such upload here. Begin one: POST /api/deployments.")
        upload = Upload(**record)
        if upload.status == "proving" and id not in self._proving:
            error = "The server was restarted meanwhile. Deploy again."
            return Upload(**{**record, "status": "failed", "error": error})
        path = self.folder / id / BUNDLE
        size = path.stat().st_size if path.exists() else upload.size_bytes
        return Upload(**{**record, "received_bytes": size})

    def _take_up(self, upload: Upload, path: Path) -> Imported:
        imported = import_bundle(
            self.warehouse,
            path,
            to_serve=True,
            name=upload.pipeline,
            permissions=self._permissions,
        )
        folder = self.warehouse.pipeline(upload.pipeline)
        first: dict[str, Any] = {"before": imported.before, "releases": [], "files": []}
        record = read_json(folder.received) or first
        record["releases"] = [*record["releases"], imported.release]
        record["files"] = sorted({*record["files"], *imported.files})
        write_json(folder.received, record)
        return imported

    def take_back(self, pipeline: str) -> list[str]:
        """Remove all that was received for a pipeline; a line for each thing. What was live before
        the first deployment is live again. Raises NotFound if nothing was received."""
        folder = self.warehouse.pipeline(pipeline)
        is_name = NAME.fullmatch(pipeline) is not None
        record = read_json(folder.received) if is_name else None
        if record is None:
            raise NotFound(f"Nothing was deployed here as {pipeline[:80]!r}.")
        with (
            folder.lock("run", timeout_seconds=0),
            folder.lock(timeout_seconds=0),
            writing(self.warehouse, pipeline, Silent()),
        ):
            removed, is_empty = self._remove_releases(pipeline, record)
            for name in record["files"]:
                path = self.warehouse.home / name
                if path.exists():
                    path.unlink()
                    removed.append(f"file {name}")
                    _remove_empty(path.parent, self.warehouse.home)
            if not is_empty:
                folder.received.unlink()
        if is_empty:  # the record goes with the rest of it
            delete_pipeline(self.warehouse.home, pipeline, keep_file=True)
            removed.append(f"folder and tables of {pipeline}")
        with self._lock:
            self._sweep(pipeline)
        return removed

    def _remove_releases(self, pipeline: str, record: dict[str, Any]) -> tuple[list[str], bool]:
        """A line for each release that went, and whether the pipeline has nothing else here."""
        folder = self.warehouse.pipeline(pipeline)
        releases = read_releases(folder)
        ours = [entry for entry in releases.releases if entry.number in record["releases"]]
        rest = [entry for entry in releases.releases if entry not in ours]
        numbers = [entry.number for entry in rest]
        live = releases.live if releases.live in numbers else record["before"]
        live = live if live in numbers else max(numbers, default=None)
        after = Releases(live=live, releases=rest)
        write_releases(folder, after)
        if ours:
            drop_tables(self.warehouse, folder, ours[0], after)
        lines = [f"release {entry.number} of {pipeline}, table {entry.table}" for entry in ours]
        if live is not None and live != releases.live:
            lines.append(f"the switch from release {live} of {pipeline}, which is live again")
        return lines, not rest and not folder.table_state.exists()

    def _sweep(self, pipeline: str | None = None) -> int:
        """Delete uploads that nothing has changed for long; of a pipeline, all but what is proven.
        How many are under way. Whoever sent one that has ended can ask how."""
        under_way = 0
        for id in list_names(self.folder):
            path = self.folder / id
            record = read_json(path / "upload.json") or {}
            is_late = time.time() - path.stat().st_mtime > KEPT_SECONDS
            if id not in self._proving and (is_late or record.get("pipeline") == pipeline):
                shutil.rmtree(path, ignore_errors=True)
            elif id in self._proving or record.get("status") == "receiving":
                under_way += 1
        if self.folder.exists() and not list_names(self.folder):
            self.folder.rmdir()
        return under_way

    def _write(self, upload: Upload) -> None:
        write_json(self.folder / upload.id / "upload.json", vars(upload), durable=False)


def _remove_empty(folder: Path, home: Path) -> None:
    """Remove folders that a deployment has left empty, up to the home folder."""
    while folder != home and folder.is_relative_to(home) and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
