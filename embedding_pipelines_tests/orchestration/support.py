"""A small pipeline that needs no model, and ways to run it as Dagster does."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from embedding_pipelines.environment import HOME_VARIABLE
from embedding_pipelines.environment import home as home_folder
from embedding_pipelines.orchestration.build import pipeline_definitions
from embedding_pipelines.orchestration.partitions import all_partitions
from embedding_pipelines.orchestration.resources import RESOURCES
from embedding_pipelines.providers.base import NO_SECRETS, InputType, Response
from embedding_pipelines.providers.hashing import Hashing, HashingModel
from embedding_pipelines.releases import read_releases
from embedding_pipelines.spec.evaluation import Evaluation
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.storage.warehouse import Warehouse

PARTITIONS = 4
NOTES = f"""\
description: Notes of a zoo.
owners: ["team:search", "ada@example.org"]
source: {{kind: jsonl, path: data/notes/*.jsonl, id: id, text: [text], metadata: [keeper]}}
model: {{provider: hashing, dimensions: 16}}
schedule: "0 2 * * *"
partitions: {PARTITIONS}
evaluation: {{known_items: 8, may_shrink: 1}}
"""
# What a process does that embeds slowly: it says that it has begun, and goes on when it may.
SLOW = """\
import os, pathlib, sys, time
from embedding_pipelines.providers.hashing import HashingModel
embed, begun, go = HashingModel.embed, pathlib.Path(os.environ["BEGUN"]), pathlib.Path(os.environ["GO"])
def slow(self, inputs, input_type):
    begun.touch()
    while not go.exists():
        time.sleep(0.05)
    return embed(self, inputs, input_type)
HashingModel.embed = slow
"""


class Failing(Hashing):
    """Answers a number of calls, then never again."""

    calls: int
    error: str = "the model is gone"

    def open(
        self, home: Path, folder: Path | None = None, secrets: Mapping[str, str] = NO_SECRETS
    ) -> "FailingModel":
        return FailingModel(self, home)


class FailingModel(HashingModel):
    options: Failing
    calls = 0

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        self.calls += 1
        if self.calls > self.options.calls:
            raise RuntimeError(self.options.error)
        return super().embed(inputs, input_type)


def write_notes(home: Path, name: str = "a", rows: range = range(40)) -> Path:
    """A file of notes, one per number."""
    path = home / "data" / "notes" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    notes = [
        {"id": f"n{row}", "text": f"note {row} on animal {row % 7}", "keeper": f"k{row % 3}"}
        for row in rows
    ]
    path.write_text("".join(json.dumps(note) + "\n" for note in notes), encoding="utf-8")
    return path


def write_pipeline(home: Path, name: str = "notes", text: str = NOTES) -> Path:
    path = home / "pipelines" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def notes(home: Path) -> PipelineSpec:
    """The pipeline, with its file and its data."""
    write_pipeline(home)
    write_notes(home)
    return find_pipeline("notes", home)


def unmeasured(spec: PipelineSpec, *checks: str) -> PipelineSpec:
    """The same pipeline, whose model is asked for nothing but chunks, and for what `checks`
    need."""
    asking = {
        "provider_is_unchanged",
        "vectors_belong_to_their_texts",
        "input_types_differ",
    } - set(checks)
    evaluation = Evaluation(known_items=0, may_shrink=1, checks=dict.fromkeys(asking, "off"))
    return spec.model_copy(update={"evaluation": evaluation})


def run(
    spec: PipelineSpec,
    instance: dg.DagsterInstance,
    provider: Hashing | None = None,
    **options: Any,
) -> dg.ExecuteInProcessResult:
    """One run over all partitions, as a schedule or a sensor asks for it."""
    if provider is not None:
        spec = spec.model_copy(update={"model": provider})
    job = pipeline_definitions([spec], home_folder()).resolve_job_def(spec.name)
    return job.execute_in_process(
        instance=instance, tags=all_partitions(spec), raise_on_error=False, **options
    )


def tick(
    spec: PipelineSpec, instance: dg.DagsterInstance, sensor: str, cursor: str | None = None
) -> dg.SensorResult:
    """One evaluation of a pipeline's sensor."""
    definitions = pipeline_definitions([spec], home_folder())
    evaluate = definitions.resolve_sensor_def(f"{spec.name}_{sensor}_sensor")
    with dg.build_sensor_context(
        instance=instance, cursor=cursor, definitions=definitions, resources=RESOURCES
    ) as context:
        result = evaluate(context)
    assert isinstance(result, dg.SensorResult)
    return result


def live_rows(home: Path, name: str = "notes") -> int:
    """Rows of the live release, 0 if there is none."""
    releases = read_releases(Warehouse(home).pipeline(name))
    live = releases.get(releases.live)
    return live.rows if live else 0


def recorded(
    instance: dg.DagsterInstance, run_id: str, kind: dg.DagsterEventType
) -> list[dg.DagsterEvent]:
    """The events of a kind that stand in the instance."""
    return [
        entry.dagster_event
        for entry in instance.all_logs(run_id, of_type=kind)
        if entry.dagster_event
    ]


def materialized(instance: dg.DagsterInstance, run_id: str) -> Iterator[tuple[str, str | None]]:
    """Asset and partition of each materialization."""
    for event in recorded(instance, run_id, dg.DagsterEventType.ASSET_MATERIALIZATION):
        assert event.asset_key is not None
        yield event.asset_key.path[-1], event.partition


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DAGSTER")}
    return {**kept, HOME_VARIABLE: str(home), "PYTHONWARNINGS": "default", **more}


def command(home: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A console command of the environment that runs the tests, with its output."""
    program = Path(sys.executable).with_name(words[0])
    return subprocess.run(
        [str(program), *words[1:]],
        env=environment(home, **more),
        cwd=home,
        text=True,
        capture_output=True,
        check=False,
    )
