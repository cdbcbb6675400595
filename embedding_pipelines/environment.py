"""What a process reads from its environment: the home folder and Dagster's instance.

Only the front (command line, Dagster, service) reads it; everything below is given its home.
"""

import os
from pathlib import Path

from embedding_pipelines.home import warehouse_folder

HOME_VARIABLE = "EMBEDDING_PIPELINES_HOME"


def home() -> Path:
    """The home folder: $EMBEDDING_PIPELINES_HOME, else the current directory; absolute."""
    return Path(os.environ.get(HOME_VARIABLE) or Path.cwd()).expanduser().resolve()


def instance_folder(home: Path) -> Path:
    """Dagster's instance: $DAGSTER_HOME, else a folder in the warehouse; absolute."""
    folder = os.environ.get("DAGSTER_HOME") or warehouse_folder(home) / "dagster"
    return Path(folder).expanduser().resolve()
