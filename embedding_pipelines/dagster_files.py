"""What the files of a Dagster instance say without Dagster, which takes seconds to load."""

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

STORAGES = ("storage", "run_storage", "event_log_storage")  # in dagster.yaml, by Dagster's names
NO_DAEMON = (
    "none: no Dagster daemon runs; in the home folder, `DAGSTER_HOME=$PWD/data/warehouse/dagster "
    "dagster dev -m embedding_pipelines.definitions` starts one"
)
ALIVE = timedelta(minutes=2)  # since a daemon's last heartbeat, of which there is one in 30 s


def keeps_records_elsewhere(folder: Path) -> bool:
    """Whether the dagster.yaml of an instance's folder names a database, a PostgreSQL server say."""
    import yaml

    try:
        settings = yaml.safe_load((folder / "dagster.yaml").read_text("utf-8"))
    except FileNotFoundError:
        return False
    return isinstance(settings, dict) and any(name in settings for name in STORAGES)


def is_without_daemon(folder: Path) -> bool:
    """Whether it is sure that no daemon looks after an instance. Where its files are elsewhere, or
    of another layout than that of Dagster 1.13, Dagster has to be asked."""
    if not (folder / "dagster.yaml").is_file():
        return True
    import yaml

    records = folder / "history" / "runs.db"
    try:
        if not records.is_file() or keeps_records_elsewhere(folder):
            return False
        uri = f"file:{quote(str(records))}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as database:
            (last,) = database.execute("SELECT max(timestamp) FROM daemon_heartbeats").fetchone()
        beat = datetime.fromisoformat(last).replace(tzinfo=UTC) if last else None
    except (sqlite3.Error, yaml.YAMLError, ValueError, TypeError):
        return False
    return beat is None or datetime.now(UTC) - beat > ALIVE
