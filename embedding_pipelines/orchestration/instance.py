"""The Dagster instance: where runs, events and schedules are kept. `python -m` this prints the folder."""

from pathlib import Path

import dagster as dg
from dagster._core.instance.ref import InstanceRef

from embedding_pipelines.home import home, instance_folder

LEAN = """\
# Written once; yours to change.
telemetry:
  enabled: false
nux:
  enabled: false
concurrency:
  runs:
    max_concurrent_runs: 4
run_monitoring:
  enabled: true
# A run whose process died is started again; one that failed for a reason that stands in its log is not.
run_retries:
  enabled: true
  max_retries: 2
  retry_on_asset_or_op_failure: false
"""

# Dagster sends what a step prints through a file and two processes that follow it, which tears a progress bar
# to pieces. A run on the command line has a terminal of its own, and its step log is kept in any case.
COMPUTE_LOGS = {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}


def made_instance_folder(home: Path) -> Path:
    """The instance's folder; made, with a lean dagster.yaml, if it is not there."""
    folder = instance_folder(home)
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "dagster.yaml"
    if not settings.exists():
        settings.write_text(LEAN, encoding="utf-8")
    return folder


def open_instance(home: Path) -> dg.DagsterInstance:
    """The instance for a run in this process."""
    overrides = {"compute_logs": COMPUTE_LOGS}
    return dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(made_instance_folder(home)), overrides=overrides))


if __name__ == "__main__":
    print(made_instance_folder(home()))
