"""A step of the chain: whether it is up to date, and how it is brought up to date."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from embedding_pipelines.progress import StepReport, sum_reports
from embedding_pipelines.run import Run
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.storage.warehouse import Shards

Options = Mapping[str, Any] | None  # values of a step's own `options`, by name
Reports = Iterator[StepReport]


@dataclass(frozen=True)
class Option:
    """What a user may say for one run of a step."""

    name: str
    default: bool | str
    description: str


class Step(ABC):
    """One file of this folder each. `current` and `work` decide by the same code, so that a plan,
    the status, a run without work and Dagster all say the same."""

    name: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]] = ()  # names of the steps whose results it reads
    partitioned: ClassVar[bool] = False
    is_asset: ClassVar[bool] = True  # False: Dagster shows it as checks of its input
    description: ClassVar[str]
    technologies: ClassVar[tuple[str, ...]] = ("python",)  # with parts of the pipeline's `spec`
    sentence: ClassVar[str]  # what it did, in a line: a format string over its statistics
    extras: ClassVar[Mapping[str, str]] = {}  # what follows it: a format by statistic, if not zero
    row_statistic: ClassVar[str | None] = None  # the statistic that counts its rows
    identity: ClassVar[tuple[str, ...]] = ()  # statistics that tell its versions apart; else all
    lineage: ClassVar[Mapping[str, str]] = {}  # column -> the input's column, if named otherwise
    options: ClassVar[tuple[Option, ...]] = ()

    def applies(self, spec: PipelineSpec) -> bool:
        """Whether the pipeline has this step at all."""
        return True

    def kinds(self, spec: PipelineSpec) -> set[str]:
        return {name.format(spec=spec) for name in self.technologies}

    @abstractmethod
    def configuration(self, spec: PipelineSpec) -> str:
        """Fingerprint of the options that decide its data."""

    def columns(self, spec: PipelineSpec) -> pa.Schema | None:
        """The schema of what it writes, where it is known before it runs."""
        return None

    def written_columns(self, run: Run) -> pa.Schema | None:
        """As `columns`, with what is known only after it ran: how long vectors are."""
        return self.columns(run.spec)

    def shards(self, run: Run) -> Shards | None:
        """Where its rows are, a file for each partition; None for a step without rows."""
        return None

    @abstractmethod
    def current(self, run: Run, partition: str | None = None) -> StepReport | None:
        """The report of what is up to date, of one partition if the step has some; None if there
        is something to do. Writes nothing."""

    @abstractmethod
    def work(self, run: Run, partitions: Sequence[str], options: Options = None) -> Reports:
        """Bring it up to date; one report, or one per partition as each is committed. The
        pipeline's lock is held."""

    def whole(self, run: Run) -> StepReport | None:
        """As `current`, of all partitions together."""
        if not self.partitioned:
            return self.current(run)
        reports = [self.current(run, partition) for partition in run.spec.partition_names]
        done = [report for report in reports if report is not None]
        return sum_reports(self.name, done) if len(done) == len(reports) else None


def row_values(rows: pa.Table | pa.RecordBatch, *columns: str) -> Iterator[tuple[Any, ...]]:
    """The values of some columns, row by row."""
    return zip(*(rows[name].to_pylist() for name in columns), strict=True)
