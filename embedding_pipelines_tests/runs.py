"""Runs whole pipelines as the command line does: through Dagster, from the source to the
release."""

from pathlib import Path

from embedding_pipelines.orchestration.launch import run_pipeline
from embedding_pipelines.progress import StepReport
from embedding_pipelines.spec.load import find_pipeline


class Collected:
    """A progress that keeps reports by step, and notes."""

    def __init__(self) -> None:
        self.reports: dict[str, StepReport] = {}
        self.notes: list[str] = []

    def update(self, step: str, done: int, total: int | None, unit: str) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)

    def finish(self, report: StepReport) -> None:
        self.reports[report.step] = report


def run_whole(home: Path, name: str) -> Collected:
    """One run that must end well."""
    collected = Collected()
    outcome = run_pipeline(home, find_pipeline(name, home), collected)
    assert outcome.problem == "", outcome.problem
    return collected
