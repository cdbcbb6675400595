"""Resources that all pipelines share: the warehouse, the model of a run, and a run's progress.

They are defined once, so that any number of components in one project use the same objects.
"""

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field, PrivateAttr, ValidationError

from embedding_pipelines.errors import (
    BusyError,
    ConfigError,
    EmbeddingPipelinesError,
    faults_in_words,
)
from embedding_pipelines.orchestration.failures import readable_errors
from embedding_pipelines.orchestration.partitions import take_all_partitions
from embedding_pipelines.orchestration.records import tag_machine
from embedding_pipelines.orchestration.retention import delete_old_runs
from embedding_pipelines.orchestration.trail import run_at_work
from embedding_pipelines.progress import Progress, StepReport
from embedding_pipelines.providers.base import EmbeddingModel, ProviderOptions
from embedding_pipelines.remote import Writer, writing
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.steps.sentences import sentence
from embedding_pipelines.storage.warehouse import PipelineFolder, Warehouse

LOG_SECONDS = 10.0  # between two lines of progress in a run's log


class WarehouseResource(dg.ConfigurableResource[Any]):
    """The warehouse below a home folder, and the locks that one run holds in it."""

    folder: str = Field(default="", description="The home folder; empty: that of the definitions.")
    _locks: contextlib.ExitStack = PrivateAttr(default_factory=contextlib.ExitStack)
    _writers: dict[Path, Writer | None] = PrivateAttr(default_factory=dict)
    _home: Path | None = PrivateAttr(default=None)
    _trail: contextlib.ExitStack = PrivateAttr(default_factory=contextlib.ExitStack)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        take_all_partitions(context)
        tag_machine(context)
        if context.run is not None:
            with readable_errors():
                run = run_at_work(context.run.job_name, context.run.run_id)
                self._trail.enter_context(run)

    def open(self, home: Path) -> Warehouse:
        """The warehouse; `home` is the home folder of the definitions.

        Raises ConfigError if the launchpad names a folder that is none.
        """
        self._home = home
        if not self.folder:
            return Warehouse(home)
        folder = Path(os.path.expanduser(self.folder)).resolve()  # which keeps an unknown ~user
        if not folder.is_dir():
            raise ConfigError(
                f"The run's home folder {self.folder!r} is no folder. Correct `resources: "
                "warehouse: config: folder:` in the launchpad, or leave it empty."
            )
        return Warehouse(folder)

    def hold(self, warehouse: Warehouse, name: str, log: dg.DagsterLogManager) -> None:
        """Wait until no other run is at work on the pipeline, then keep others out until this run
        ends. Raises BusyError if another machine is, which shares the warehouse by a bucket.

        Pools make runs wait in Dagster's queue. This lock is for runs that do not come from there
        (the command line, `dg launch`): between the steps of another run, a step would meet
        partitions of which only half is done.
        """
        pipeline = warehouse.pipeline(name)
        if pipeline.folder in self._writers:
            return
        try:
            self._locks.enter_context(pipeline.lock("run", timeout_seconds=0))
        except BusyError:
            log.info(f"Waiting for the run of pipeline {name!r} that is under way.")
            self._locks.enter_context(pipeline.lock("run"))
        writer = self._locks.enter_context(writing(warehouse, name, LogProgress(log, name)))
        self._writers[pipeline.folder] = writer

    def publish(self, pipeline: PipelineFolder) -> None:
        """Publish what the run has made, where the warehouse is shared by a bucket. Raises
        BucketError if that fails, BusyError if another machine has taken over."""
        if (writer := self._writers.get(pipeline.folder)) is not None:
            writer.publish()

    def require_lease(self, pipeline: PipelineFolder) -> None:
        """Raises BusyError if another machine has taken over, where the warehouse is shared by a
        bucket."""
        if (writer := self._writers.get(pipeline.folder)) is not None:
            writer.require_lease()

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """The end of a run, however it was started: let others in, and tidy Dagster's history."""
        self._trail.close()
        try:
            self._locks.close()
        except EmbeddingPipelinesError as error:  # of what a run made that failed
            message = f"What this run made is not published: {error}"
            (context.log or dg.get_dagster_logger()).warning(message)
        if self._home is None or context.instance is None or context.run is None:
            return
        try:
            delete_old_runs(context.instance, self._home, context.run.job_name)
        except Exception as error:  # noqa: BLE001  # which the run has nothing to do with
            message = f"Old runs could not be deleted from Dagster's history: {error}"
            (context.log or dg.get_dagster_logger()).warning(message)


def locked_warehouse(writer: Writer | None) -> WarehouseResource:
    """The warehouse for a process that holds the pipeline's lock already, and its lease as `writer`;
    None without a bucket."""

    class LockedWarehouseResource(WarehouseResource):
        # Dagster makes another instance of the class for the run, so that none can hold the writer.
        def hold(self, warehouse: Warehouse, name: str, log: dg.DagsterLogManager) -> None:
            pass

        def require_lease(self, pipeline: PipelineFolder) -> None:
            if writer is not None:
                writer.require_lease()

    return LockedWarehouseResource()


class ModelResource(dg.ConfigurableResource[Any]):
    """The embedding model of a run: the pipeline's own, unless the launchpad names another."""

    kind: str = Field(
        default="", description="The provider for this run; empty: that of the pipeline's file."
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="The provider's options, as in a pipeline file. Without a kind they change "
        "single options of the file's model.",
    )

    _models: dict[str, EmbeddingModel] = PrivateAttr(default_factory=dict)

    def choose(self, spec: PipelineSpec) -> ProviderOptions:
        """The options of this run's model.

        Raises ConfigError for wrong options, without their values: one may be a key.
        """
        if not self.kind and not self.options:
            return spec.model
        model = {} if self.kind else spec.model.model_dump(mode="json", exclude_defaults=True)
        model = {**model, "kind": self.kind or spec.model.kind, **self.options}
        try:
            return PipelineSpec.model_validate({**dict(spec), "model": model}).model
        except ValidationError as error:
            problems = faults_in_words(error.errors(include_input=False))
            raise ConfigError(
                f"The run's model for pipeline {spec.name!r} is wrong: {problems}. "
                "Correct `resources: model: config:` in the launchpad."
            ) from None

    def open(self, options: ProviderOptions, home: Path, folder: Path) -> EmbeddingModel:
        """The live model of these options, one for all steps of the run; closed when it ends."""
        key = f"{folder} {options.model_dump_json()}"
        if key not in self._models:
            self._models[key] = options.open(home, folder)
        return self._models[key]

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        for model in self._models.values():
            model.close()


class LogProgress:
    """Progress as lines of the run's log, each with pipeline and step, not more often than every
    LOG_SECONDS."""

    def __init__(self, log: dg.DagsterLogManager, pipeline: str = "") -> None:
        self._log, self._pipeline = log, pipeline
        self._last = time.monotonic()

    def update(self, step: str, done: int, total: int | None, unit: str) -> None:
        if total != 0 and time.monotonic() - self._last >= LOG_SECONDS:
            self._last = time.monotonic()
            amount = f"{done:,} {unit}" if total is None else f"{done:,} of {total:,} {unit}"
            self._log.info(f"{self._pipeline} {step}: {amount}")

    def note(self, text: str) -> None:
        self._log.warning(f"{self._pipeline}: {text}")

    def finish(self, report: StepReport) -> None:
        self._log.info(f"{self._pipeline} {report.step}: {sentence(report)}")


class ProgressResource(dg.ConfigurableResource[Progress]):
    """Where steps report their progress: the run's log. The command line puts its bar here."""

    def create_resource(self, context: dg.InitResourceContext) -> Progress:
        assert context.log is not None
        return LogProgress(context.log)


RESOURCES: dict[str, Any] = {
    "warehouse": WarehouseResource(),
    "model": ModelResource(),
    "progress": ProgressResource(),
}
