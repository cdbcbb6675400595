"""Ticks: when Dagster next looks at a pipeline, as its instance has it on record."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg

from embedding_pipelines.dagster_files import ALIVE, NO_DAEMON, is_without_daemon
from embedding_pipelines.environment import instance_folder
from embedding_pipelines.errors import EmbeddingPipelinesError
from embedding_pipelines.orchestration.failures import readable_records
from embedding_pipelines.orchestration.instance import open_instance
from embedding_pipelines.orchestration.sensors import BATCH_TICK_SECONDS, TICK_SECONDS
from embedding_pipelines.spec.pipeline import PipelineSpec


def next_tick(spec: PipelineSpec, home: Path) -> str:
    """When a schedule or a sensor of a pipeline next looks at it, and what asks for that; `none`,
    and why, where nothing does. Raises nothing: who asks wants to know how the pipeline stands."""
    folder = instance_folder(home)
    try:
        if is_without_daemon(folder):
            return NO_DAEMON
        with readable_records(folder), open_instance(home) as instance:
            return _next_tick(spec, instance, datetime.now(UTC))
    except (EmbeddingPipelinesError, OSError) as error:
        return f"unknown: {error}"


def next_time(schedule: str) -> datetime:
    """When a cron schedule next comes, in UTC."""
    ticks = dg.TimeWindowPartitionsDefinition(
        start=datetime.now(UTC), fmt="%Y-%m-%dT%H:%M:%S%z", cron_schedule=schedule, end_offset=2
    )
    window = ticks.get_first_partition_window()
    assert window is not None  # a schedule that never comes is refused with the pipeline file
    return window.start


def _next_tick(spec: PipelineSpec, instance: dg.DagsterInstance, now: datetime) -> str:
    beats = [beat.timestamp for beat in instance.get_daemon_heartbeats().values()]
    last = datetime.fromtimestamp(max(beats), UTC) if beats else None
    if last is None or now - last > ALIVE:
        return NO_DAEMON
    seconds = {
        f"{spec.name}_source_sensor": TICK_SECONDS,
        f"{spec.name}_batch_sensor": BATCH_TICK_SECONDS,
    }
    ticks = dict[str, datetime]()
    for state in instance.all_instigator_state():
        if not state.is_running:
            continue
        if state.name in seconds:
            looked_at = getattr(state.instigator_data, "last_tick_start_timestamp", None)
            wait = timedelta(seconds=seconds[state.name])
            looked = datetime.fromtimestamp(looked_at, UTC) if looked_at else now - wait
            ticks[state.name] = max(looked + wait, now)
        elif state.name == f"{spec.name}_schedule" and spec.schedule is not None:
            ticks[f"{spec.schedule!r}"] = next_time(spec.schedule)
    if not ticks:
        return f"none: the sensor {spec.name}_source_sensor is off; switch it on in Dagster"
    return "; ".join(
        f"{at:%Y-%m-%d %H:%M:%S} UTC by {name}"
        for name, at in sorted(ticks.items(), key=lambda tick: tick[1])
    )
