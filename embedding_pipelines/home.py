"""Where a user's files are: the home folder, and nothing inside it but its layout.

home/
├── pipelines/          one YAML or JSON file per pipeline
└── data/
    ├── …               inputs
    └── warehouse/      all that is produced: shards, cache, tables, Dagster's instance
"""

import os
from pathlib import Path

HOME_VARIABLE = "EMBEDDING_PIPELINES_HOME"


def home() -> Path:
    """The home folder: $EMBEDDING_PIPELINES_HOME, else the current directory; absolute."""
    return Path(os.environ.get(HOME_VARIABLE) or Path.cwd()).expanduser().resolve()


def pipelines_folder(home: Path) -> Path:
    return home / "pipelines"


def warehouse_folder(home: Path) -> Path:
    return home / "data" / "warehouse"


def instance_folder(home: Path) -> Path:
    """Dagster's instance: $DAGSTER_HOME, else a folder in the warehouse."""
    return (
        Path(os.environ.get("DAGSTER_HOME") or warehouse_folder(home) / "dagster")
        .expanduser()
        .resolve()
    )
