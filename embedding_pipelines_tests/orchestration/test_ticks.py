"""When Dagster next looks at a pipeline, by what its instance has on record."""

import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    ScheduleInstigatorData,
    SensorInstigatorData,
)
from dagster._daemon.types import DaemonHeartbeat

from embedding_pipelines.dagster_files import NO_DAEMON, is_without_daemon
from embedding_pipelines.environment import HOME_VARIABLE, instance_folder
from embedding_pipelines.orchestration.instance import open_instance
from embedding_pipelines.orchestration.ticks import next_tick, next_time
from embedding_pipelines_tests.orchestration.support import notes

REPOSITORY = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "all")


@pytest.mark.parametrize(
    ("schedule", "most"), [("*/5 * * * *", 300), ("@daily", 86_400), ("0 2 * * 1", 7 * 86_400)]
)
def test_the_next_time_of_a_schedule_is_the_first_that_comes(schedule: str, most: int) -> None:
    before = datetime.now(UTC)
    at = next_time(schedule)
    assert before < at <= datetime.now(UTC) + timedelta(seconds=most)
    assert (at.minute % 5, at.second) == (0, 0)


def test_the_next_tick_is_told_as_daemon_sensor_and_schedule_stand(
    home: Path, own_instance: Path
) -> None:
    spec = notes(home).model_copy(update={"schedule": "0 2 * * *"})
    assert next_tick(spec, home / "elsewhere") == NO_DAEMON

    def note(instance: dg.DagsterInstance, name: str, kind: InstigatorType, data: object) -> None:
        origin = RemoteInstigatorOrigin(REPOSITORY, name)
        status = InstigatorStatus.RUNNING
        instance.add_instigator_state(InstigatorState(origin, kind, status, data))  # type: ignore[arg-type]

    with open_instance(home) as instance:
        assert next_tick(spec, home) == NO_DAEMON
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - 600, "SENSOR", "1", []))
        assert next_tick(spec, home) == NO_DAEMON
        assert is_without_daemon(instance_folder(home))
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time(), "SENSOR", "1", []))
        assert not is_without_daemon(instance_folder(home))
        assert "the sensor notes_source_sensor is off" in next_tick(spec, home)
        data = SensorInstigatorData(last_tick_start_timestamp=time.time() - 10)
        note(instance, "notes_source_sensor", InstigatorType.SENSOR, data)
        note(
            instance, "notes_schedule", InstigatorType.SCHEDULE, ScheduleInstigatorData("0 2 * * *")
        )
        first, second = next_tick(spec, home).split("; ")
        assert first.endswith(" UTC by notes_source_sensor")
        at = datetime.strptime(first[:19], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
        assert timedelta(seconds=10) < at - datetime.now(UTC) < timedelta(seconds=21)
        assert second.endswith(" 02:00:00 UTC by '0 2 * * *'")
    folder = instance_folder(home)
    (folder / "history" / "runs.db").write_bytes(b"of another layout")
    assert not is_without_daemon(folder)  # Dagster has to be asked
    (folder / "dagster.yaml").write_text("[")
    assert not is_without_daemon(folder)


def test_a_status_loads_dagster_only_where_a_daemon_is_alive(
    home: Path, own_instance: Path
) -> None:
    notes(home)
    with open_instance(home):
        pass
    code = (
        "import sys\n"
        "from embedding_pipelines.cli.main import main\n"
        "try: main()\n"
        "finally: assert 'dagster' not in sys.modules\n"
    )
    environment = {**os.environ, HOME_VARIABLE: str(home)}
    ended = subprocess.run(
        [sys.executable, "-c", code, "status"], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert "no Dagster daemon runs" in ended.stdout
