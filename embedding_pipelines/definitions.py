"""Dagster's entry point: every pipeline in the home folder's `pipelines/`, and the components that
`dg scaffold defs` wrote."""

from pathlib import Path

import dagster as dg

from embedding_pipelines.environment import home
from embedding_pipelines.orchestration.build import home_definitions

DEFS = Path(__file__).with_name("defs")


@dg.definitions
def definitions() -> dg.Definitions:
    # Assets that are launched without a job take the location's executor, and the model is loaded
    # once per process.
    parts = [home_definitions(home()), dg.Definitions(executor=dg.in_process_executor)]
    if DEFS.is_dir():
        parts.append(dg.load_from_defs_folder(path_within_project=DEFS))
    return dg.Definitions.merge(*parts)
