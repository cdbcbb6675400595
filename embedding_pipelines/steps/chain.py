"""The chain: every step of this folder, in the order the data takes."""

import graphlib
from pathlib import Path

from embedding_pipelines.files import read_json
from embedding_pipelines.plugins import objects
from embedding_pipelines.progress import StepReport
from embedding_pipelines.releases import read_releases
from embedding_pipelines.run import Run
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.steps.base import Step
from embedding_pipelines.steps.repair import is_sound


def _discover() -> tuple[Step, ...]:
    """One object of each Step class, after the steps that it reads from."""
    steps = objects("steps", Step)  # type: ignore[type-abstract]
    order = graphlib.TopologicalSorter({name: step.inputs for name, step in steps.items()})
    return tuple(steps[name] for name in order.static_order())


CHAIN: tuple[Step, ...] = _discover()


def steps_of(spec: PipelineSpec) -> tuple[Step, ...]:
    """The steps that a pipeline has."""
    return tuple(step for step in CHAIN if step.applies(spec))


def step_named(name: str) -> Step:
    return next(step for step in CHAIN if step.name == name)


def up_to_date(run: Run, instance: Path) -> list[StepReport] | None:
    """What every step would report if there is nothing to do, else None.

    Nothing is written, and neither the model nor the store's library is loaded where files say
    enough. None too if the last whole run is not on record in the Dagster `instance` of today (its
    web UI would never learn of it), if another model was released, or if anything is damaged: a run
    then repairs it or names it.
    """
    reports = []
    try:
        is_recorded = read_json(run.folder.last_run) == {"instance": str(instance)}
        if not is_recorded or not (instance / "dagster.yaml").is_file():
            return None
        with run.folder.lock("run", timeout_seconds=0):  # else another process is at work on it
            if not is_sound(run.folder):
                return None
            released = [entry.spec.model for entry in read_releases(run.folder).releases]
            if run.spec.migration is None:  # else the other line's may be the newest
                released = released[-1:]
            if not any(model in released for model in (run.spec.model, run.release_options())):
                return None  # another model may have to be fetched first
            for step in steps_of(run.spec):
                report = step.whole(run)
                if report is None:
                    return None
                reports.append(report)
    except Exception:  # noqa: BLE001  # a run repairs or names it, where its history shows it
        return None
    return reports
