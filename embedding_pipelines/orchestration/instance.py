"""The Dagster instance: where runs, events and schedules are kept. `python -m` this prints the folder."""

import os
from pathlib import Path

import dagster as dg

from embedding_pipelines.home import home, warehouse_folder

LEAN = """\
# Written once; yours to change.
telemetry:
  enabled: false
concurrency:
  pools:
    granularity: op
    default_limit: 1
  runs:
    max_concurrent_runs: 4
run_monitoring:
  enabled: true
run_retries:
  enabled: true
  max_retries: 2
"""


def instance_folder(home: Path) -> Path:
    """$DAGSTER_HOME, else a folder in the warehouse; made, with a lean dagster.yaml, if it is not there."""
    folder = Path(os.environ.get("DAGSTER_HOME") or warehouse_folder(home) / "dagster").expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "dagster.yaml"
    if not settings.exists():
        settings.write_text(LEAN, encoding="utf-8")
    return folder


def open_instance(home: Path) -> dg.DagsterInstance:
    return dg.DagsterInstance.from_config(str(instance_folder(home)))


if __name__ == "__main__":
    print(instance_folder(home()))
