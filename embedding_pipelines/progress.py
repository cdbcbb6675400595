"""How a step tells how far it is and what it did. Who shows it (a terminal, Dagster's log) decides how."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class StepReport:
    """What a step did. `facts` are JSON values with their unit in the name; counts are rows."""

    step: str
    changed: bool  # False: everything was up to date and nothing was written
    facts: dict[str, Any]
    bucket: str | None = None
    seconds: float = 0.0


class Progress(Protocol):
    def update(self, step: str, done: int, total: int | None, unit: str) -> None:
        """`done` of `total` `unit` ("rows", "tokens") are finished; total None when unknown."""

    def note(self, text: str) -> None:
        """One thing the user should know, though it is no error."""

    def finish(self, report: StepReport) -> None:
        """A step is done, all its buckets together."""


class Silent:
    """Shows nothing."""

    def update(self, step: str, done: int, total: int | None, unit: str) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def finish(self, report: StepReport) -> None:
        pass


# Facts that are not added up over buckets: name -> (the fact that is divided, by which one, digits).
RATES = {
    "tokens_per_second": ("embedded_tokens", "provider_seconds", 0),
    "seconds_per_call": ("call_seconds", "calls", 3),
    "texts_per_call": ("embedded", "calls", 1),
}


def rates(facts: dict[str, Any]) -> dict[str, float]:
    """The rates that these facts give."""
    found = {
        name: (facts.get(over), facts.get(under), digits)
        for name, (over, under, digits) in RATES.items()
    }
    return {
        name: round(over / under, digits or None)
        for name, (over, under, digits) in found.items()
        if over and under
    }


def summed(step: str, reports: Iterable[StepReport]) -> StepReport:
    """The reports of a step's buckets as one: counts added up, rates taken anew."""
    reports = list(reports)
    facts: dict[str, Any] = {}
    for report in reports:
        for name, value in report.facts.items():
            if name not in RATES and isinstance(value, int | float):
                facts[name] = facts.get(name, 0) + value
    facts.update(rates(facts))
    facts["buckets"] = len(reports)
    facts["changed_buckets"] = sum(report.changed for report in reports)
    return StepReport(step, any(report.changed for report in reports), facts)
