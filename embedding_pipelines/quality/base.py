"""What a check is, and what it comes to."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

from embedding_pipelines.quality.evidence import Candidate
from embedding_pipelines.run import Run
from embedding_pipelines.spec.evaluation import Effect


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


MIN_ROWS = 500  # below, ten results are too large a part of the table


class Check(ABC):
    """One file each, which has the check's name: in `structure` what must hold of the table itself,
    in `checks` what the user may turn off."""

    name: ClassVar[str]
    effect: ClassVar[Effect] = "block"  # unless `evaluation.checks` says another
    is_structural: ClassVar[bool] = False
    needs_stored_codes: ClassVar[bool] = False  # with the texts of their chunks
    description: ClassVar[str]

    def cost(self, run: Run) -> int:
        """Tokens at most that `collect` has embedded."""
        return 0

    def collect(self, candidate: Candidate) -> None:
        """Have the provider embed what `evaluate` or a metric compares. If it raises, the check is
        inconclusive."""
        return  # most checks need nothing more than every candidate has

    @abstractmethod
    def evaluate(self, candidate: Candidate) -> Outcome:
        """Compare what was gathered; nothing is read or embedded here."""

    def outcome(
        self, passed: bool, sentence: str, statistics: dict[str, Any] | None = None
    ) -> Outcome:
        return Outcome(self.name, passed, sentence, statistics or {}, self.effect)

    def too_few(self, rows: int, statistics: dict[str, Any] | None = None) -> Outcome:
        sentence = f"Skipped: needs at least {MIN_ROWS} rows, the table has {rows}."
        return self.outcome(True, sentence, statistics)
