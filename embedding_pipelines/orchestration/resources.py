"""Resources: the core's providers, warehouse and progress, as Dagster configures and shows them,
and a run's turn on its pipeline."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field, ValidationError

from embedding_pipelines.environment import home
from embedding_pipelines.errors import BusyError, ConfigError
from embedding_pipelines.plugins import parse
from embedding_pipelines.progress import Progress, StepReport
from embedding_pipelines.providers.base import Provider
from embedding_pipelines.storage.warehouse import Warehouse

LOG_SECONDS = 10.0  # between two lines of progress in a run's log


class ProviderResource(dg.ConfigurableResource[Provider]):
    """An embedding provider: its kind, and its options as in a pipeline file. Both can be
    overridden per run."""

    kind: str
    options: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def of(cls, provider: Provider) -> "ProviderResource":
        """The resource that makes an equal provider."""
        options = provider.model_dump(mode="json", exclude={"kind"}, exclude_defaults=True)
        return cls(kind=provider.kind, options=options)

    def create_resource(self, context: dg.InitResourceContext) -> Provider:
        """Raises ConfigError for wrong options, without what stands in them: it may be a key."""
        try:
            provider: Provider = parse("providers", Provider, {"kind": self.kind, **self.options})
        except ValidationError as error:
            wrong = "; ".join(
                f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors()
            )
            raise ConfigError(
                f"The options of provider {self.kind!r} are wrong: {wrong}."
            ) from None
        return provider


class WarehouseResource(dg.ConfigurableResource[Warehouse]):
    """The warehouse below a home folder (empty: EMBEDDING_PIPELINES_HOME, else the current
    directory)."""

    folder: str = ""

    def create_resource(self, context: dg.InitResourceContext) -> Warehouse:
        return Warehouse(Path(self.folder) if self.folder else home())


class TurnResource(dg.ConfigurableResource[None]):
    """A run's turn: runs of one pipeline, whoever started them, come one after the other. In the
    middle of another run the steps of this one would find partitions of which only half is done."""

    pipeline: str

    @contextlib.contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[None]:
        folder = Warehouse(home()).pipeline(self.pipeline)
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(folder.lock("run", timeout_seconds=0))
            except BusyError:
                assert context.log is not None
                context.log.info(
                    f"Waiting for the run of pipeline {self.pipeline!r} that is under way."
                )
                held.enter_context(folder.lock("run"))
            yield


class LogProgress:
    """Progress as lines of the run's log, not more often than every LOG_SECONDS."""

    def __init__(self, log: dg.DagsterLogManager) -> None:
        self._log = log
        self._last = time.monotonic()

    def update(self, step: str, done: int, total: int | None, unit: str) -> None:
        if time.monotonic() - self._last >= LOG_SECONDS:
            self._last = time.monotonic()
            self._log.info(f"{step}: {done:,} of {total if total is None else f'{total:,}'} {unit}")

    def note(self, text: str) -> None:
        self._log.warning(text)

    def finish(self, report: StepReport) -> None:
        statistics = ", ".join(f"{name}: {value}" for name, value in report.statistics.items())
        self._log.info(
            f"{report.step} {'done' if report.changed else 'unchanged'} ({report.seconds:.1f} s): {statistics}"
        )


class ProgressResource(dg.ConfigurableResource[Progress]):
    """Where steps say how far they are: the run's log. The command line puts its bar here."""

    def create_resource(self, context: dg.InitResourceContext) -> Progress:
        assert context.log is not None
        return LogProgress(context.log)
