"""Dagster's entry point: every pipeline in the home folder's `pipelines/`, and what `dg scaffold
defs` wrote into `defs/`."""

from pathlib import Path

import dagster as dg

from embedding_pipelines.environment import home
from embedding_pipelines.orchestration.build import home_definitions
from embedding_pipelines.orchestration.cleaning import cleaning

DEFS = Path(__file__).with_name("defs")


@dg.definitions
def definitions() -> dg.Definitions:
    # Assets that are launched without a job take the location's executor: here too, the model is
    # loaded once per run.
    parts = [
        home_definitions(home()),
        cleaning(home()),
        dg.Definitions(executor=dg.in_process_executor),
    ]
    if any(path.is_dir() and path.name != "__pycache__" for path in DEFS.iterdir()):
        parts.append(dg.load_from_defs_folder(path_within_project=DEFS))
    return dg.Definitions.merge(*parts)
