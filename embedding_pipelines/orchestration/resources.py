"""Resources: the core's providers, warehouse and progress, as Dagster configures and shows them."""

import time
from typing import Any

import dagster as dg
from dagster import InitResourceContext

from embedding_pipelines.home import home
from embedding_pipelines.plugins import parse
from embedding_pipelines.progress import Progress, StepReport
from embedding_pipelines.providers.base import Provider
from embedding_pipelines.warehouse import Warehouse

LOG_SECONDS = 10.0  # between two lines of progress in a run's log


class ProviderResource(dg.ConfigurableResource[Provider]):
    """An embedding provider: its kind, and its options as in a pipeline file. Both can be overridden per run."""

    kind: str
    options: dict[str, Any] = {}

    @classmethod
    def of(cls, provider: Provider) -> "ProviderResource":
        """The resource that makes an equal provider."""
        options = provider.model_dump(mode="json", exclude={"kind"}, exclude_defaults=True)
        return cls(kind=provider.kind, options=options)

    def create_resource(self, context: InitResourceContext) -> Provider:
        provider: Provider = parse("providers", Provider, {"kind": self.kind, **self.options})
        return provider


class WarehouseResource(dg.ConfigurableResource[Warehouse]):
    """The warehouse below a home folder (empty: EMBEDDING_PIPELINES_HOME, else the current directory)."""

    folder: str = ""

    def create_resource(self, context: InitResourceContext) -> Warehouse:
        from pathlib import Path

        return Warehouse(Path(self.folder) if self.folder else home())


class LogProgress:
    """Progress as lines of the run's log, not more often than every LOG_SECONDS."""

    def __init__(self, log: dg.DagsterLogManager) -> None:
        self._log = log
        self._last = 0.0

    def update(self, step: str, done: int, total: int | None, unit: str) -> None:
        now = time.monotonic()
        if done == total or now - self._last >= LOG_SECONDS:
            self._last = now
            self._log.info(f"{step}: {done:,} of {total if total is None else f'{total:,}'} {unit}")

    def note(self, text: str) -> None:
        self._log.warning(text)

    def finish(self, report: StepReport) -> None:
        pass


class ProgressResource(dg.ConfigurableResource[Progress]):
    """Where steps say how far they are: the run's log. The command line puts its bar here."""

    def create_resource(self, context: InitResourceContext) -> Progress:
        assert context.log is not None
        return LogProgress(context.log)
