"""Erasure: runs whose events quote a text that is forgotten leave a home's own Dagster instance.

Events hold notes and errors, some of which quote the beginning of a text; what is on record of
assets and checks, which outlives runs, holds figures and names alone. An instance that the user
has chosen is the user's to tidy.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg

from embedding_pipelines.dagster_files import keeps_records_elsewhere
from embedding_pipelines.environment import instance_folder
from embedding_pipelines.files import list_files
from embedding_pipelines.forget.proof import database_texts
from embedding_pipelines.home import warehouse_folder
from embedding_pipelines.orchestration.failures import readable_records
from embedding_pipelines.orchestration.instance import open_instance
from embedding_pipelines.orchestration.retention import FINISHED, delete_run
from embedding_pipelines.storage.quotes import json_texts


def delete_runs_that_quote(home: Path, name: str, quotes: Callable[[str], bool]) -> int:
    """Delete the runs that have an event, or output that Dagster captured, for which `quotes` is
    true; how many. Runs of other pipelines than `name`, whose lock is held, may be at work: they
    stay, and the proof names their files."""
    root = warehouse_folder(home) / "dagster"
    if instance_folder(home).resolve() != root.resolve() or not root.is_dir():
        return 0
    with readable_records(root):
        ids = {*_in_events(root, quotes), *_in_output(root, quotes)}
        is_elsewhere = keeps_records_elsewhere(root)
        if ids or is_elsewhere:
            with open_instance(home) as instance:
                ids |= {*_in_records(instance, quotes)} if is_elsewhere else set()
                ids = {run_id for run_id in ids if not _is_at_work(instance, run_id, name)}
                for run_id in sorted(ids):
                    delete_run(instance, run_id)
    return len(ids)


def _in_records(instance: dg.DagsterInstance, quotes: Callable[[str], bool]) -> Iterator[str]:
    """Of an instance whose events are in a database of another kind than a file."""
    for run in instance.get_runs():
        for entry in instance.all_logs(run.run_id):
            if any(map(quotes, json_texts(dg.serialize_value(entry)))):
                yield run.run_id
                break


def _is_at_work(instance: dg.DagsterInstance, run_id: str, name: str) -> bool:
    run = instance.get_run_by_id(run_id)
    return run is not None and run.job_name != name and run.status not in FINISHED


def _in_events(root: Path, quotes: Callable[[str], bool]) -> Iterator[str]:
    for path in list_files(root / "history" / "runs", "*-*.db"):
        if any(map(quotes, database_texts(path))):
            yield path.stem


def _in_output(root: Path, quotes: Callable[[str], bool]) -> Iterator[str]:
    for path in (root / "storage").rglob("*"):
        if path.is_file() and quotes(path.read_text("utf-8", "replace")):
            yield path.relative_to(root / "storage").parts[0]
