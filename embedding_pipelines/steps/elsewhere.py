"""What a worker on another machine has in common with the process that started a step."""

import uuid
from abc import ABC
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedding_pipelines import __version__
from embedding_pipelines.engines.base import Engine, Kit, ShardWork
from embedding_pipelines.engines.inline import Inline
from embedding_pipelines.errors import EngineError
from embedding_pipelines.files import delete, read_json, write_json
from embedding_pipelines.run import Run
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.storage.warehouse import Warehouse


@dataclass(frozen=True)
class RunKit(Kit, ABC):
    """The run that a worker takes part in."""

    spec: PipelineSpec
    home: Path
    token: str  # which stands in the pipeline's folder as long as the step is at work
    version: str
    is_old_line: bool  # as in `Run`

    def open_run(self) -> Run:
        """The run on this machine. Raises EngineError for another version or another folder."""
        if __version__ != self.version:
            raise EngineError(
                f"it has version {__version__} of embedding-pipelines, and the run {self.version}"
            )
        run = Run(self.spec, Warehouse(self.home), is_old_line=self.is_old_line)
        if read_json(run.folder.cluster) != {"run": self.token}:
            raise EngineError(
                f"its {run.folder.folder} is not that of the machine that started the run: mount the "
                "same folder at the same place everywhere"
            )
        return run


class RunWork(ShardWork):
    """A step's work on its shards in a run."""

    def __init__(self, run: Run, advance: Callable[[int], None]) -> None:
        self._run, self._advance = run, advance

    def identity(self) -> tuple[PipelineSpec, Path, str, str, bool]:
        """What a RunKit begins with."""
        run, token = self._run, uuid.uuid4().hex
        write_json(run.folder.cluster, {"run": token})
        return run.spec, run.warehouse.home, token, __version__, run.is_old_line

    def advance(self, amount: int) -> None:
        self._advance(amount)

    def note(self, text: str) -> None:
        self._run.progress.note(text)


class Nothing:
    """What workers share that share nothing."""

    def release(self, worker: str) -> None:
        pass

    def close(self) -> str:
        return ""


def engine_of(run: Run) -> Engine:
    """The pipeline's; a copy of a pipeline's folder is seen by this machine alone."""
    return Inline() if run.warehouse.is_copy else run.spec.engine


def map_shards(run: Run, work: RunWork, partitions: Sequence[str]) -> Iterator[Any]:
    """As the engine of the run's pipeline does; its workers end with this generator."""
    results = engine_of(run).map_shards(work, partitions)
    try:
        with closing(results):  # type: ignore[type-var]
            yield from results
    finally:
        delete(run.folder.cluster)
