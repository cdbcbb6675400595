"""The contract of all engines: a step's shards are worked on here, or by workers on other machines.

An engine knows no step. A step gives it `ShardWork`; what that needs elsewhere travels as a `Kit`,
from which each worker opens all that it works with, once. Shards are read and written where they
lie: what passes between processes are names of shards, and reports of some hundred bytes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from embedding_pipelines.plugins import Choice

Advance = Callable[[int], None]  # is given what was done since it was last called


class Shared(Protocol):
    """The one object of a run that all of its workers call, wherever they are."""

    name: str  # of the worker that calls

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method with the worker's name before the arguments. Raises what it raises."""


class Worker(ABC):
    """What works on shards, with everything open that this takes."""

    @abstractmethod
    def work(self, shards: Sequence[str], advance: Advance) -> Iterator[Any]:
        """Work on shards, in order; a small result for each once it is written."""


class Kit(ABC):
    """All that a worker is opened from on another machine. It is pickled, and holds no secret."""

    @abstractmethod
    def open_shared(self) -> Any:
        """The object behind `Shared`, in a process of its own. It has a method `release(worker)`,
        called when a worker has ended a shard, or was lost, and `close()`, whose result is what a
        user should know, if anything."""

    @abstractmethod
    def open(self, shared: Shared, cores: int | None) -> Worker:
        """A worker on this machine that keeps so many of its cores busy, None for all. Raises
        EmbeddingPipelinesError where this machine would not do what the others do."""


class ShardWork(ABC):
    """A step's work on its shards, as an engine is given it."""

    @abstractmethod
    def here(self) -> Worker:
        """A worker in this process, with what the run has open."""

    @abstractmethod
    def kit(self) -> Kit: ...

    @abstractmethod
    def advance(self, amount: int) -> None:
        """Told what was done since it was last called; may raise to end the work."""

    @abstractmethod
    def note(self, text: str) -> None:
        """Told what a user should know, though it is no error."""


class Engine(Choice):
    """Where the shards of a step are worked on. It changes no result."""

    @abstractmethod
    def map_shards(self, work: ShardWork, shards: Sequence[str]) -> Iterator[Any]:
        """The result of each shard, as it ends.

        Raises what a worker raised for a user to fix, EngineError without workers, and
        QuarantineError once all other shards are done if some ended the workers that had them.
        """
