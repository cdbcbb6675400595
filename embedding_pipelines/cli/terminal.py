"""What the command line shows: progress, tables and search results.

Bars and short lines on a terminal; in a pipe plain lines, nothing cut and nothing coloured. What
stands in a user's data is shown as it is: no markup, no emoji codes, no control characters.
"""

import textwrap
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from embedding_pipelines.progress import StepReport

if TYPE_CHECKING:
    from embedding_pipelines.search import SearchResult

PLAIN_SECONDS = 10.0  # between two lines of progress in a pipe
WIDE_COLUMNS = 80  # of a terminal that has room for times beside a bar
EXCERPT_LINES = 2  # of a hit's text on a terminal
EXCERPT_INDENT = " " * 11

# What a step did, in a line; in the order of the steps.
SENTENCES = {
    "documents": "{documents} from {files}, {rejected:,} rejected",
    "chunks": "{chunks}, {tokens}, {empty}",
    "model": "learnt from {texts:,} texts, {dimensions:,} dimensions",
    "embeddings": "{vectors}: {embedded} embedded, {cache_hits:,} from the cache",
    "codec": "{dimensions:,} x {dtype}, {bytes_per_vector} each",
    "vector_store": "{rows}: {added:,} added, {removed:,} removed",
    "checks": "{passed:,} of {checks:,} passed",
    "release": "release {release}, live: {live}",
}
SPOKEN_METRICS = {
    "ndcg_at_10": "nDCG@10",
    "known_item_recall": "known items",
    "recall_at_10": "recall@10",
}
COUNTED = {  # statistics that are spoken with their noun
    "documents": "document",
    "files": "file",
    "chunks": "chunk",
    "tokens": "token",
    "empty": "empty document",
    "vectors": "vector",
    "embedded": "text",
    "bytes_per_vector": "byte",
    "rows": "row",
}


def make_console(**options: Any) -> Console:
    """A console that prints text as it is: markup, emoji codes and highlighting are off."""
    return Console(markup=False, emoji=False, highlight=False, **options)


class TerminalProgress:
    """A bar per step on a terminal, a line now and then elsewhere; remembers the reports."""

    def __init__(self, console: Console, pipeline: str) -> None:
        self.reports: list[StepReport] = []
        self.notes: list[str] = []
        self._console, self._pipeline = console, pipeline
        self._drawn = console.is_terminal and not console.is_dumb_terminal
        self._step, self._task = "", TaskID(0)
        self._last = time.monotonic()
        self._bars = Progress(
            *_columns(console.width), console=console, disable=not self._drawn, transient=True
        )

    def __enter__(self) -> "TerminalProgress":
        self._bars.start()
        self._show(next(iter(SENTENCES)))
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def update(self, step: str, done: int, total: int | None, unit: str) -> None:
        amount = f"{done:,}/{total:,} {unit}" if total is not None else f"{done:,} {unit}"
        if self._drawn:
            self._show(step)
            self._bars.update(self._task, completed=done, total=total, amount=amount)
        elif time.monotonic() - self._last >= PLAIN_SECONDS:
            self._last = time.monotonic()
            self._console.print(f"{self._pipeline} {step}: {amount}", soft_wrap=True)

    def note(self, text: str) -> None:
        self.notes.append(text)
        self._bars.console.print(
            f"{self._pipeline} note: {printable(text)}", style="yellow", soft_wrap=True
        )

    def finish(self, report: StepReport) -> None:
        self.reports.append(report)
        line = f"{self._pipeline} {report.step:<12} {sentence(report)}"
        self._bars.console.print(line, soft_wrap=True)
        steps = [
            step for step in SENTENCES if step != "model" or step == report.step
        ]  # few pipelines have that one
        following = steps[steps.index(report.step) + 1 :]
        self._show(following[0] if following else "")

    def _show(self, step: str) -> None:
        """One bar, of the step at work; it moves to and fro until the step says how far it is."""
        if not self._drawn or step == self._step:
            return
        if self._step:
            self._bars.remove_task(self._task)
        if step:
            self._task = self._bars.add_task(step, total=None, amount="")
        self._step = step


def _columns(width: int) -> list[ProgressColumn]:
    name, amount = TextColumn("{task.description:<12}"), TextColumn("{task.fields[amount]:>26}")
    if width < WIDE_COLUMNS:
        return [name, BarColumn(10), amount]
    return [name, BarColumn(20), amount, TimeElapsedColumn(), TimeRemainingColumn()]


def sentence(report: StepReport) -> str:
    """What a step did, in a line."""
    statistics = {
        name: counted(value, COUNTED[name]) if name in COUNTED else value
        for name, value in report.statistics.items()
    }
    spoken = SENTENCES[report.step].format(**statistics)
    if report.step == "embeddings":
        spoken += (
            f", {statistics['rejected']:,} refused (see status)"
            if statistics.get("rejected")
            else ""
        )
        spoken += f" for {statistics['usd']:.4f} USD" if statistics.get("usd") else ""
        spoken += (
            f" at {statistics['tokens_per_second']:,} tokens/s"
            if statistics.get("tokens_per_second")
            else ""
        )
    if report.step == "checks":
        spoken += "".join(
            f", {name} {statistics[key]:.3f}"
            for key, name in SPOKEN_METRICS.items()
            if key in statistics
        )
    return f"{spoken} ({report.seconds:.1f} s)" if report.changed else f"{spoken} (unchanged)"


def counted(number: int, noun: str) -> str:
    """`1 file`, `2,000 files`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def print_table(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of equal keys below a heading. A terminal cuts what does not fit; a pipe gets
    everything."""
    lines = [
        [name.replace("_", " ") for name in rows[0]],
        *([_cell(value) for value in row.values()] for row in rows),
    ]
    numbers = [{type(row[name]) for row in rows} - {type(None)} == {int} for name in rows[0]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for position, line in enumerate(lines):
        cells = (
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(line, widths, numbers, strict=True)
        )
        text = Text("  ".join(cells).rstrip(), style="bold" if position == 0 else "")
        if console.is_terminal:
            console.print(text, no_wrap=True, overflow="ellipsis")
        else:
            console.print(text, soft_wrap=True)


def print_statistics(console: Console, title: str, statistics: Mapping[str, Any]) -> None:
    """Names and values below a title. Nothing is folded, so that a path can be copied."""
    console.print(Text(title, style="bold"), soft_wrap=True)
    width = max(map(len, statistics))
    for name, value in statistics.items():
        console.print(f"  {name.replace('_', ' '):<{width}}  {_cell(value)}", soft_wrap=True)


def print_hits(console: Console, result: "SearchResult") -> None:
    """Search results, nearest first; on a terminal an excerpt of each."""
    for rank, hit in enumerate(result.hits, 1):
        line = Text(f"{rank:>2}  {hit.score:.3f}  {printable(hit.document_id)}", style="bold")
        for name, value in hit.metadata.items():
            line.append(f"  {name}={_cell(value)}", style="not bold dim")
        console.print(line, soft_wrap=True)
        text = printable(hit.text)
        if console.is_terminal:
            room = max(console.width - len(EXCERPT_INDENT) - 1, 20)
            lines = textwrap.wrap(text, room, max_lines=EXCERPT_LINES, placeholder=" …")
            text = f"\n{EXCERPT_INDENT}".join(lines)
        console.print(f"{EXCERPT_INDENT}{text}", soft_wrap=True)
    found = "" if result.hits else "nothing found, "
    summary = (
        f"{result.pipeline}, release {result.release}: {found}{result.milliseconds / 1000:.2f} s"
    )
    console.print(Text(summary, style="dim"), soft_wrap=True)


def printable(text: str) -> str:
    """The text on one line: white space and control characters become single spaces."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _cell(value: Any) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    return (
        f"{value:,}"
        if isinstance(value, int) and not isinstance(value, bool)
        else printable(str(value))
    )
