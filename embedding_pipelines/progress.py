"""Progress of a step, and the report of what it did, for a terminal or Dagster's log to show."""

import time
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


class Recorder(Silent):
    """Shows nothing, and keeps what it was told."""

    def __init__(self) -> None:
        self.reports: list[StepReport] = []
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def finish(self, report: StepReport) -> None:
        self.reports.append(report)

    def as_json(self) -> dict[str, Any]:
        return {"notes": self.notes, "steps": as_rows(self.reports)}


def as_rows(reports: Sequence[StepReport]) -> list[dict[str, Any]]:
    """What steps did, as commands and the API say it."""
    return [
        {
            "step": report.step,
            "changed": report.changed,
            "seconds": round(report.seconds, 3),
            **report.statistics,
        }
        for report in reports
    ]


class Paused(Exception):
    """Raised where a run was told to stop by itself; not an error. `str` says how far it has come."""


# Steps that can end in their middle, and what their units are then.
VERBS = {"chunks": "cut into chunks", "train": "trained", "embeddings": "embedded"}


class Limited:
    """A progress that ends a run with Paused at a share of its tokens, from 0 to 1, or at a time of
    the clock `time.monotonic`, whichever comes first.

    It does so between partitions that are cut, steps of training and requests to the model, for what was done
    until then is kept; never where no partition is left to write.
    """

    def __init__(self, progress: Progress, share: float | None, deadline: float | None) -> None:
        self._progress, self._share, self._deadline = progress, share, deadline
        self.paused = ""  # how far the run has come, once it was ended

    def update(self, step: str, done: int, total: int | None, unit: str) -> None:
        self._progress.update(step, done, total, unit)
        if step not in VERBS or not total or done >= total:
            return
        is_late = self._deadline is not None and time.monotonic() >= self._deadline
        is_enough = step == "embeddings" and self._share is not None and done >= self._share * total
        if is_late or is_enough:
            self.paused = f"{done:,} of {total:,} {unit} are {VERBS[step]}"
            raise Paused(self.paused)

    def note(self, text: str) -> None:
        self._progress.note(text)

    def finish(self, report: StepReport) -> None:
        self._progress.finish(report)


# Statistics that cannot be summed over partitions: name -> (dividend, divisor, digits).
RATES = {
    "tokens_per_second": ("embedded_tokens", "provider_seconds", 0),
    "images_per_second": ("embedded_images", "provider_seconds", 1),
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
