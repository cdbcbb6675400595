"""Where a Dagster instance keeps its records: in files of its folder, or on a server that several
machines may share."""

import platform
from pathlib import Path

import dagster as dg

from embedding_pipelines.dagster_files import keeps_records_elsewhere

MACHINE_TAG = "machine"  # on runs in a database that machines share: where its process is


def machine_tags(folder: Path) -> dict[str, str]:
    """What a run's record says of its machine, if others read it where an instance's folder has
    it."""
    return {MACHINE_TAG: platform.node()} if keeps_records_elsewhere(folder) else {}


def tag_machine(context: dg.InitResourceContext) -> None:
    """Say in a run's record on which machine it is, if other machines read it there."""
    instance = context.instance
    if instance is None or context.run is None:
        return
    if tags := machine_tags(Path(instance.root_directory)):
        instance.add_run_tags(context.run.run_id, tags)


def is_of_another_machine(run: dg.DagsterRun) -> bool:
    return run.tags.get(MACHINE_TAG, platform.node()) != platform.node()
