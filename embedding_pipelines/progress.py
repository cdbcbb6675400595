"""Progress of a step, and the report of what it did, for a terminal or Dagster's log to show."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class StepReport:
    """What a step did; `statistics` are JSON values with the unit in the name, else rows."""

    step: str
    changed: bool  # False: everything was up to date, so the step wrote nothing
    statistics: dict[str, Any]
    partition: str | None = None
    seconds: float = 0.0


class Progress(Protocol):
    def update(self, step: str, done: int, total: int | None, unit: str) -> None:
        """`done` of `total` `unit` ("rows", "tokens") are finished; total None: unknown."""

    def note(self, text: str) -> None:
        """Tell the user something that is no error."""

    def finish(self, report: StepReport) -> None:
        """A step has finished all its partitions."""


class Silent:
    """Shows nothing."""

    def update(self, step: str, done: int, total: int | None, unit: str) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def finish(self, report: StepReport) -> None:
        pass


# Statistics that cannot be summed over partitions: name -> (dividend, divisor, digits).
RATES = {
    "tokens_per_second": ("embedded_tokens", "provider_seconds", 0),
    "seconds_per_request": ("request_seconds", "requests", 3),
    "texts_per_request": ("embedded", "requests", 1),
    "tokens_per_edited_token": ("embedded_tokens", "edited_tokens", 1),
}


def compute_rates(statistics: dict[str, Any]) -> dict[str, float]:
    """The RATES that these statistics give."""
    rates: dict[str, float] = {}
    for name, (dividend, divisor, digits) in RATES.items():
        if statistics.get(dividend) and statistics.get(divisor):
            rates[name] = round(statistics[dividend] / statistics[divisor], digits or None)
    return rates


def sum_reports(step: str, reports: Sequence[StepReport]) -> StepReport:
    """The reports of a step's partitions as one, with counts summed and rates computed again."""
    statistics: dict[str, Any] = {}
    for report in reports:
        for name, value in report.statistics.items():
            if name not in RATES and isinstance(value, int | float):
                statistics[name] = statistics.get(name, 0) + value
    statistics.update(compute_rates(statistics))
    statistics["partitions"] = len(reports)
    statistics["changed_partitions"] = sum(report.changed for report in reports)
    return StepReport(step, any(report.changed for report in reports), statistics)
