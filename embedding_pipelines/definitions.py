"""Dagster's entry point: every pipeline in the home folder's `pipelines/`."""

import dagster as dg

from embedding_pipelines.environment import home
from embedding_pipelines.orchestration.build import home_definitions


@dg.definitions
def definitions() -> dg.Definitions:
    return home_definitions(home())
