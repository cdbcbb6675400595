"""The Dagster instance: where runs, events and schedules are kept. `python -m` this prints the
folder."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
from filelock import FileLock

from embedding_pipelines.dagster_files import keeps_records_elsewhere
from embedding_pipelines.environment import home, instance_folder
from embedding_pipelines.errors import EmbeddingPipelinesError, StoreError
from embedding_pipelines.files import create_only
from embedding_pipelines.orchestration.dead_runs import end_dead_runs
from embedding_pipelines.orchestration.failures import readable_records
from embedding_pipelines.orchestration.storage import batches, storages
from embedding_pipelines.schemas import digest
from embedding_pipelines.storage.warehouse import Warehouse

LEAN = """\
# Written once; yours to change.
telemetry:
  enabled: false
nux:
  enabled: false
concurrency:
  runs:
    max_concurrent_runs: 4
  # Each pipeline is a pool: one run of it at a time, the others wait in the queue.
  pools:
    granularity: run
    default_limit: 1
run_monitoring:
  enabled: true
# A run whose process died is started again; one whose log says why it failed is not.
run_retries:
  enabled: true
  max_retries: 2
  retry_on_asset_or_op_failure: false
# Looks of sensors and schedules; of the runs the newest stay (docs/dagster.md).
retention:
  schedule:
    purge_after_days: 90
  sensor:
    purge_after_days:
      skipped: 7
      failure: 30
      success: 90
"""

# Dagster sends what a step prints through a file and two processes that follow it, which tears a
# progress bar to pieces. A run on the command line has a terminal of its own, and its events are
# recorded in any case. Configuration, by the address that Dagster documents.
COMPUTE_LOGS = {
    "module": "dagster.core.storage.noop_compute_log_manager",
    "class": "NoOpComputeLogManager",
}
MADE = ".made"  # a file that says so of the databases


def ensure_instance_folder(home: Path) -> Path:
    """The instance's folder; made, with a lean dagster.yaml and Dagster's databases, if it is not
    there.

    Dagster makes its databases at their first use, without a lock: of several processes that do so
    at once, most fail, and leave databases that no process can use any more. So they are made here,
    by one process at a time.
    """
    folder = _without_url_marks(instance_folder(home))
    create_only(folder / "dagster.yaml", LEAN)
    if not (folder / MADE).exists():
        with FileLock(folder / "making.lock"):
            if not (folder / MADE).exists():
                with dg.DagsterInstance.from_config(str(folder)) as instance:
                    instance.get_runs(limit=1)
                    instance.get_asset_keys(limit=1)
                    instance.all_instigator_state()
                create_only(folder / MADE, "Dagster's databases were made.\n")
    return folder


def _without_url_marks(folder: Path) -> Path:
    """The folder under a path that Dagster can use: it makes URLs of paths without quoting them, so
    that what follows a `?` is cut off and `%20` becomes a space. Such a folder gets a link in the
    system's temporary folder, by which all processes of this user reach it.

    Raises StoreError if there is something else of the link's name.
    """
    if not set("?%") & set(str(folder)):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    name = f"embedding-pipelines-{os.getuid()}-{digest(os.fsencode(folder)).hex()}"
    link = Path(tempfile.gettempdir(), name)
    with contextlib.suppress(FileExistsError):
        link.symlink_to(folder)
    if link.lstat().st_uid != os.getuid() or link.resolve() != folder.resolve():
        raise StoreError(f"{link} is not a link to {folder}. Remove it, and try again.")
    return link


@contextlib.contextmanager
def open_instance(home: Path) -> Iterator[dg.DagsterInstance]:
    """The instance for a run in this process. `local_temp` is Dagster's public way to open one in a
    folder; nothing about it is temporary."""
    folder = ensure_instance_folder(home)
    quick = {} if keeps_records_elsewhere(folder) else storages(folder)
    overrides = {"compute_logs": COMPUTE_LOGS, **quick}
    with batches(), dg.DagsterInstance.local_temp(str(folder), overrides=overrides) as instance:
        yield instance


def has_records(folder: Path) -> bool:
    """Whether an instance may have runs on record. Without files of a history nothing ever ran."""
    return (folder / "history").is_dir() or keeps_records_elsewhere(folder)


def start() -> Path:
    """The instance's folder, for Dagster's services to start on: without runs that a crash left as
    started, which would keep those of the same pipeline waiting."""
    with readable_records(instance_folder(home())):
        folder = ensure_instance_folder(home())
        if has_records(folder):
            with open_instance(home()) as instance:
                end_dead_runs(instance, Warehouse(home()))
    return folder


if __name__ == "__main__":
    try:
        print(start())
    except EmbeddingPipelinesError as error:
        sys.exit(f"error: {error}")
