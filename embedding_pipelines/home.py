"""The layout of a home folder: which folder below it holds what.

home/
├── pipelines/          one YAML or JSON file per pipeline
├── warehouse.yaml      the bucket that machines share, if there is one
└── data/
    ├── …               inputs
    └── warehouse/      all that is produced: shards, cache, tables, Dagster's instance
"""

from pathlib import Path


def pipelines_folder(home: Path) -> Path:
    return home / "pipelines"


def warehouse_folder(home: Path) -> Path:
    return home / "data" / "warehouse"
