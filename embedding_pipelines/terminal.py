"""What the command line shows: progress, tables and search results. Bars on a terminal, plain lines in a pipe."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from embedding_pipelines.progress import StepReport
from embedding_pipelines.search import SearchResult

PLAIN_SECONDS = 10.0  # between two lines of progress in a pipe
SHOWN_CHARACTERS = 160  # of a hit's text


class TerminalProgress:
    """A bar per step on a terminal, a line now and then elsewhere; remembers the reports."""

    def __init__(self, console: Console, pipeline: str) -> None:
        self.reports: list[StepReport] = []
        self._console, self._pipeline = console, pipeline
        self._tasks: dict[str, TaskID] = {}
        self._last = time.monotonic()
        columns = (
            TextColumn("{task.description:<13}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[amount]:>24}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bars = Progress(*columns, console=console, disable=not console.is_terminal)

    def __enter__(self) -> "TerminalProgress":
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def update(self, step: str, done: int, total: int | None, unit: str) -> None:
        amount = f"{done:,}/{total:,} {unit}" if total is not None else f"{done:,} {unit}"
        if not self._console.is_terminal:
            if time.monotonic() - self._last >= PLAIN_SECONDS:
                self._last = time.monotonic()
                self._console.print(f"{self._pipeline} {step}: {amount}", highlight=False, soft_wrap=True)
            return
        if step not in self._tasks:
            self._tasks[step] = self._bars.add_task(step, total=total, amount=amount)
        self._bars.update(self._tasks[step], completed=done, total=total, amount=amount)

    def note(self, text: str) -> None:
        self._bars.console.print(f"note: {escape(text)}", style="yellow", soft_wrap=True)

    def finish(self, report: StepReport) -> None:
        self.reports.append(report)
        if report.step in self._tasks:
            self._bars.remove_task(self._tasks.pop(report.step))
        line = f"{self._pipeline} {report.step:<12} {_sentence(report)}"
        self._bars.console.print(escape(line), highlight=False, soft_wrap=True)


def _sentence(report: StepReport) -> str:
    """What a step did, in a line."""
    facts = report.facts
    spoken = {
        "documents": "{documents:,} documents from {files:,} files, {rejected:,} records rejected",
        "chunks": "{chunks:,} chunks, {tokens:,} tokens, {empty:,} empty documents",
        "embeddings": "{vectors:,} vectors: {embedded:,} texts embedded, {from_ledger:,} from the ledger",
        "codec": "{dimensions} x {dtype}, {bytes_per_vector:,} bytes a vector",
        "vector_store": "{rows:,} rows: {added:,} added, {removed:,} removed",
        "release": "release {release}, live: {live}",
    }[report.step].format(**facts)
    if report.step == "embeddings" and facts.get("tokens_per_second"):
        spoken += f" at {facts['tokens_per_second']:,} tokens/s"
    return f"{spoken} ({report.seconds:.1f} s)" if report.changed else f"{spoken} (unchanged)"


def table(title: str, rows: Iterable[Mapping[str, Any]]) -> Table:
    """Rows with equal keys as a table with a heading each."""
    rows = list(rows)
    shown = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for number, name in enumerate(rows[0] if rows else ()):
        shown.add_column(name, overflow="fold", justify="left" if number == 0 else "default")
    for row in rows:
        shown.add_row(*(escape(_cell(value)) for value in row.values()))
    return shown


def print_hits(console: Console, result: SearchResult) -> None:
    """Search results, nearest first, a short excerpt each."""
    if not result.hits:
        console.print("Nothing found.")
    for rank, hit in enumerate(result.hits, 1):
        excerpt = " ".join(hit.text.split())
        cut = excerpt[:SHOWN_CHARACTERS] + ("…" if len(excerpt) > SHOWN_CHARACTERS else "")
        extra = "  ".join(f"{name}={_cell(value)}" for name, value in hit.metadata.items())
        head = f"[bold]{rank:>2}  {hit.score:.3f}  {escape(hit.document_id)}[/bold]"
        console.print(f"{head}  [dim]{escape(extra)}[/dim]", highlight=False, soft_wrap=True)
        console.print(f"           {escape(cut)}", highlight=False, soft_wrap=True)
    console.print(
        f"[dim]{result.pipeline}, release {result.release}, {result.milliseconds:.0f} ms[/dim]", highlight=False
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
