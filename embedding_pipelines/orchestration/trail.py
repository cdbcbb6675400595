"""What a run leaves for machines to read, on the command line and in Dagster alike: log records with
pipeline, run, step and partition, and a span for each of these."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

from embedding_pipelines.embedding.batch_jobs import BatchPending
from embedding_pipelines.progress import Paused, Progress, StepReport
from embedding_pipelines.steps.sentences import sentence
from embedding_pipelines.telemetry import FIELDS, common_fields, past_span, set_up, span

log = logging.getLogger(__name__)
log.addHandler(logging.NullHandler())  # these are for machines: people read what a progress says


class Noted:
    """A progress whose notes are warnings in the log, too."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def update(self, step: str, done: int, total: int | None, unit: str) -> None:
        self._progress.update(step, done, total, unit)

    def note(self, text: str) -> None:
        log.warning("%s", text)
        self._progress.note(text)

    def finish(self, report: StepReport) -> None:
        self._progress.finish(report)


@contextlib.contextmanager
def run_at_work(job: str, run_id: str) -> Iterator[None]:
    """A run of Dagster's, whoever launched it; it sets this process up as its environment says.

    Raises ConfigError where that is wrong.
    """
    set_up(os.environ)
    labels = {"embedding_pipelines.job": job, "embedding_pipelines.run_id": run_id}
    with common_fields(pipeline=job, run_id=run_id), span(f"run {job}", **labels):
        log.info("The run begins.")
        yield
        log.info("The run ends.")


@contextlib.contextmanager
def step_at_work(pipeline: str, run_id: str, step: str) -> Iterator[Callable[[StepReport], None]]:
    """A step of a run. The function takes the report of each partition that it has finished, whose
    `seconds` are those since the one before."""
    names = {"pipeline": pipeline, "run_id": run_id, "step": step}
    labels = {f"embedding_pipelines.{name}": value for name, value in names.items()}

    def tell(report: StepReport) -> None:
        seconds = round(report.seconds, 3)
        fields: dict[str, Any] = {"changed": report.changed, "seconds": seconds}
        if report.partition is not None:
            fields["partition"] = report.partition
            more = {**labels, "embedding_pipelines.partition": report.partition}
            past_span(f"partition {report.partition}", report.seconds, **more)
        log.info("%s", sentence(report), extra={FIELDS: {**fields, **report.statistics}})

    with common_fields(**names), span(f"step {step}", **labels):
        log.info("%s begins.", step)
        try:
            yield tell
        except (BatchPending, Paused):
            raise
        except Exception as error:
            if log.isEnabledFor(logging.INFO):  # else who began the run says it, once
                fields = {FIELDS: {"error": type(error).__name__}}
                log.error("%s failed: %s", step, error, extra=fields)
            raise
