"""Dead runs: what a killed process or a power cut left as "started" is ended, so that it does not
keep others out of the queue for ever.

Dagster (1.13) looks after the processes that its running code server started, and after no others.
"""

import time
from types import MappingProxyType

import dagster as dg

from embedding_pipelines.errors import BusyError
from embedding_pipelines.orchestration.records import is_of_another_machine
from embedding_pipelines.spec.load import pipeline_file
from embedding_pipelines.storage.warehouse import Warehouse

SILENT_SECONDS = 300.0  # a run that lives takes its lock, or says something, sooner than that
# Of a run whose lock is not seen from here: it is on another machine, or its job has none.
SILENT_ELSEWHERE_SECONDS = 86_400.0
CLEANS = "_clean_warehouse"  # a job without a lock
# What else is done with pipelines than runs, by jobs named PIPELINE__KIND, and whether it holds the
# lock of a pipeline's runs. A comparison does, but for a pipeline that has none yet.
HOLDS_LOCK = MappingProxyType(
    {"optimize": True, "compare": False, "deploy": False, "undeploy": False}
)
ENDED = "The process of this run was ended from outside; the next run goes on from it."


def end_dead_runs(instance: dg.DagsterInstance, warehouse: Warehouse) -> list[str]:
    """Mark as failed the runs on record as started of which no process is left; their ids.

    A run that works holds the lock of its pipeline, and one that waits for the lock takes it as
    soon as it is free. So a run is dead if the locks of its pipelines stay free, and it has said
    nothing for a while. The locks of another machine, which shares the records, are not seen from
    here: its runs are dead after a day of silence, and so is what holds none.
    """
    started = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])
    silent = [run for run in instance.get_runs(started) if _is_silent(instance, run, warehouse)]
    if not any(_is_free(run, warehouse) for run in silent):
        return []
    time.sleep(1)  # for one that waits for a lock that has just come free
    dead = [run for run in silent if _is_free(run, warehouse)]
    for run in dead:
        instance.report_run_failed(run, ENDED)
    return [run.run_id for run in dead]


def _is_silent(instance: dg.DagsterInstance, run: dg.DagsterRun, warehouse: Warehouse) -> bool:
    is_unseen = is_of_another_machine(run) or _has_no_lock(run, warehouse)
    patience = SILENT_ELSEWHERE_SECONDS if is_unseen else SILENT_SECONDS
    records = instance.get_records_for_run(run.run_id, limit=1, ascending=False).records
    return all(time.time() - record.timestamp > patience for record in records)


def _has_no_lock(run: dg.DagsterRun, warehouse: Warehouse) -> bool:
    """Whether a run is of a job of this project that holds no lock of a pipeline's runs."""
    _, kind = _work_of(run, warehouse)
    return run.job_name == CLEANS or not HOLDS_LOCK.get(kind, True)


def _work_of(run: dg.DagsterRun, warehouse: Warehouse) -> tuple[str, str]:
    """The pipeline that a job is named by, and what else than a run it does with it, if it does."""
    name, _, kind = run.job_name.rpartition("__")
    is_here = warehouse.pipeline(name).folder.exists() or pipeline_file(name, warehouse.home)
    return (name, kind) if name and kind in HOLDS_LOCK and is_here else (run.job_name, "")


def _is_free(run: dg.DagsterRun, warehouse: Warehouse) -> bool:
    """Whether all pipelines of a run are in this warehouse, and no process is at work on any; of a run
    without a lock its silence tells."""
    if _has_no_lock(run, warehouse):
        return True
    keys = run.asset_selection or ()
    names = {key.path[0] for key in keys} or {_work_of(run, warehouse)[0]}
    for name in names:
        folder = warehouse.pipeline(name)
        if not folder.has_lock("run"):
            return False
        try:
            with folder.lock("run", timeout_seconds=0):
                pass
        except BusyError:
            return False
    return True
