"""Orchestration: the only place that knows Dagster. Its modules bear the names of Dagster's own
concepts."""
