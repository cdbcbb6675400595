"""Keep a published, measured, searchable vector store true to changing data.

Start at `pipeline.py` (what a user writes), `steps/` (what each asset does, without Dagster) and
`definitions.py` (what Dagster loads). ARCHITECTURE.md shows the way the data takes.
"""

__version__ = "0.1.0"
