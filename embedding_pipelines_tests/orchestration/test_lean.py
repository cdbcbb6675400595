"""What a run does not use of Dagster's is not imported, and there when somebody does use it."""

import subprocess
import sys
from pathlib import Path

# In a process of its own: here Alembic is imported for long.
PROGRAM = """
import sys
from pathlib import Path
from embedding_pipelines.orchestration import storage
print(*(name in sys.modules for name in ("alembic", "dagster._daemon", "structlog")))

from embedding_pipelines.orchestration.instance import ensure_instance_folder, open_instance
home = Path(sys.argv[1])
ensure_instance_folder(home)  # Dagster writes its databases, by Alembic
with open_instance(home) as instance:
    print(type(instance.event_log_storage).__name__, instance.get_runs_count())
    print(*instance.event_log_storage.alembic_version()[1:])

import alembic.command, dagster._daemon, dagster._daemon.controller
print(alembic.command.upgrade.__module__, dagster._daemon.DagsterDaemonController.__name__)
"""


def test_alembic_and_the_daemon_come_when_they_are_used(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lean, opened, revision, real = done.stdout.splitlines()
    assert lean == "False False False"
    assert opened == "Events 0"
    assert len(revision) == 12
    assert real == "alembic.command DagsterDaemonController"
