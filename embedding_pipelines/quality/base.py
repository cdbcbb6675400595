"""What a check is, and what it comes to."""

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

from embedding_pipelines.quality.evidence import Candidate as Candidate  # for the files of checks
from embedding_pipelines.run import Run
from embedding_pipelines.spec.evaluation import Effect

MIN_ROWS = 500  # below, ten results are too large a part of the table


@dataclass(frozen=True)
class Outcome:
    """What a check came to for one candidate; `statistics` are the figures that it compared."""

    name: str
    passed: bool
    sentence: str
    statistics: dict[str, Any] = field(default_factory=dict)
    effect: Effect = "block"  # if it did not pass
    # False if the check could not run (provider unreachable); the next run repeats it.
    conclusive: bool = True

    @property
    def blocks(self) -> bool:
        """Whether it holds the release back."""
        return not self.passed and self.effect == "block"


class Check(ABC):
    """One file each: its name is the check's, its docstring the description. Those in `structure`
    must hold of the table itself, those in `checks` the user may turn off."""

    effect: ClassVar[Effect] = "block"  # unless `evaluation.checks` says another
    needs_stored_codes: ClassVar[bool] = False  # with the texts of their chunks

    @property
    def name(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    @property
    def description(self) -> str:
        return " ".join((sys.modules[type(self).__module__].__doc__ or "").split())

    def cost(self, run: Run) -> int:
        """Tokens at most that `collect` has embedded."""
        return 0

    def collect(self, candidate: Candidate) -> None:
        """Read or embed what this or a metric compares. If it raises, the check is inconclusive."""
        return  # most checks need no more than what is gathered of every candidate

    @abstractmethod
    def evaluate(self, candidate: Candidate) -> Outcome:
        """Compare what was gathered. An outcome may warn though the check blocks."""

    def outcome(
        self, passed: bool, sentence: str, statistics: dict[str, Any] | None = None
    ) -> Outcome:
        return Outcome(self.name, passed, sentence, statistics or {}, self.effect)

    def weakness(self, sentence: str, statistics: dict[str, Any]) -> Outcome:
        """What is weak, but not broken: it only warns, unless the pipeline file says `block`."""
        return Outcome(self.name, False, sentence, statistics, "warn")

    def too_few(self, rows: int, statistics: dict[str, Any] | None = None) -> Outcome:
        sentence = f"Skipped: needs at least {MIN_ROWS} rows, the table has {rows}."
        return self.outcome(True, sentence, statistics)
