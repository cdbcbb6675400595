"""Retention: of the runs in a home's own Dagster instance the newest stay, so that its history does
not grow for ever. An instance that the user has chosen is the user's to tidy.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

import dagster as dg

from embedding_pipelines.files import delete, list_files
from embedding_pipelines.home import warehouse_folder

KEPT_RUNS = 100  # of each job; a run takes 0.5 to 1.2 MB
MORE_RUNS = 10  # before the oldest go, since looking for what must stay takes a moment
MOST_DELETED = 50  # at a time: a history that grew for long goes by and by
NEWEST = 64  # materializations to look at first: four runs of 16 partitions
FINISHED = [
    dg.DagsterRunStatus.SUCCESS,
    dg.DagsterRunStatus.FAILURE,
    dg.DagsterRunStatus.CANCELED,
]


def delete_old_runs(instance: dg.DagsterInstance, home: Path, job_name: str) -> list[str]:
    """Delete the oldest finished runs of a job beyond the newest KEPT_RUNS, if the instance is the
    home's own; their ids.

    Runs stay that hold an asset's newest materialization, of any partition: Dagster forgets it with
    the run.
    """
    root = Path(instance.root_directory)
    if root.resolve() != (warehouse_folder(home) / "dagster").resolve():
        return []
    finished = dg.RunsFilter(job_name=job_name, statuses=FINISHED)
    count = instance.get_runs_count(finished)
    if count < KEPT_RUNS + MORE_RUNS:
        return []
    excess = min(count - KEPT_RUNS, MOST_DELETED)
    records = instance.get_run_records(finished, limit=excess, ascending=True)
    runs = [record.dagster_run for record in records]
    in_force = _in_force(instance, {key for run in runs for key in _assets(instance, run)})
    ids = [run.run_id for run in runs if run.run_id not in in_force]
    for run_id in ids:
        delete_run(instance, run_id)
    return ids


def delete_run(instance: dg.DagsterInstance, run_id: str) -> None:
    """Delete a run, with its files."""
    root = Path(instance.root_directory)
    instance.delete_run(run_id)
    # Dagster (1.13) empties the run's files and leaves them in their full size.
    for path in list_files(root / "history" / "runs", f"{run_id}.db*"):
        delete(path)
    shutil.rmtree(root / "storage" / run_id, ignore_errors=True)


def _assets(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Iterable[dg.AssetKey]:
    """What a run may have materialized."""
    return run.asset_selection or instance.get_asset_keys(prefix=[run.job_name])


def _in_force(instance: dg.DagsterInstance, keys: Iterable[dg.AssetKey]) -> set[str]:
    """The runs of the newest materializations of assets, and of each of their partitions."""
    ids = set[str]()
    for key in keys:
        missing = {None, *instance.get_materialized_partitions(key)}
        if len(missing) > 1:
            missing.remove(None)
        cursor, limit = None, NEWEST
        while missing:
            page = instance.fetch_materializations(key, limit, cursor)
            for record in page.records:
                if record.partition_key in missing:
                    missing.remove(record.partition_key)
                    ids.add(record.run_id)
            if not page.has_more:
                break
            cursor, limit = page.cursor, 10 * NEWEST
    return ids
