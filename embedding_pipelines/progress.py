"""How a step tells how far it is and what it did. Who shows it (a terminal, Dagster's log) decides
how."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class StepReport:
    """What a step did. `statistics` are JSON values with their unit in the name; counts are
    rows."""

    step: str
    changed: bool  # False: everything was up to date and nothing was written
    statistics: dict[str, Any]
    partition: str | None = None
    seconds: float = 0.0


class Progress(Protocol):
    def update(self, step: str, done: int, total: int | None, unit: str) -> None:
        """`done` of `total` `unit` ("rows", "tokens") are finished; total None when unknown."""

    def note(self, text: str) -> None:
        """One thing the user should know, though it is no error."""

    def finish(self, report: StepReport) -> None:
        """A step is done, all its partitions together."""


class Silent:
    """Shows nothing."""

    def update(self, step: str, done: int, total: int | None, unit: str) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def finish(self, report: StepReport) -> None:
        pass


# Statistics that are not added up over partitions: name -> (the fact that is divided, by which one,
# digits).
RATES = {
    "tokens_per_second": ("embedded_tokens", "provider_seconds", 0),
    "seconds_per_request": ("request_seconds", "requests", 3),
    "texts_per_request": ("embedded", "requests", 1),
}


def rates(statistics: dict[str, Any]) -> dict[str, float]:
    """The rates that these statistics give."""
    found = {
        name: (statistics.get(over), statistics.get(under), digits)
        for name, (over, under, digits) in RATES.items()
    }
    return {
        name: round(over / under, digits or None)
        for name, (over, under, digits) in found.items()
        if over and under
    }


def sum_reports(step: str, reports: Iterable[StepReport]) -> StepReport:
    """The reports of a step's partitions as one: counts added up, rates taken anew."""
    reports = list(reports)
    statistics: dict[str, Any] = {}
    for report in reports:
        for name, value in report.statistics.items():
            if name not in RATES and isinstance(value, int | float):
                statistics[name] = statistics.get(name, 0) + value
    statistics.update(rates(statistics))
    statistics["partitions"] = len(reports)
    statistics["changed_partitions"] = sum(report.changed for report in reports)
    return StepReport(step, any(report.changed for report in reports), statistics)
