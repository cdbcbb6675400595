"""What the command line shows: progress, tables and search results.

Bars and short lines on a terminal; in a pipe plain lines, nothing cut and nothing coloured. What
stands in a user's data is shown as it is: no markup, no emoji codes, no control characters.
"""

import contextlib
import logging
import re
import sys
import textwrap
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size
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

from embedding_pipelines.errors import counted as counted
from embedding_pipelines.progress import StepReport
from embedding_pipelines.steps.sentences import sentence as sentence

if TYPE_CHECKING:
    from embedding_pipelines.search import Hit, SearchResult
    from embedding_pipelines.serving.wire import SearchAnswer, SearchHit

PLAIN_SECONDS = 10.0  # between two lines of progress in a pipe
PIPE_COLUMNS = 1_000_000  # nothing is cut there
WIDE_COLUMNS = 80  # of a terminal that has room for times beside a bar
GAP = 2  # between two columns of a table
CUT_WIDTH = 12  # a text that is cut keeps so much
EXCERPT_LINES = 2  # of a hit's text on a terminal
EXCERPT_INDENT = " " * 11
JOINERS = "\u200c\u200d"  # of letters in Persian and Indic scripts, and of emoji
FIGURE = re.compile(r"-|[+-]?[\d,]*\.?\d+")  # a cell that is aligned to the right, never cut


def make_console(**options: Any) -> Console:
    """A console that prints text as it is: markup, emoji codes and highlighting are off."""
    console = Console(markup=False, emoji=False, highlight=False, **options)
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    return console


class TerminalProgress:
    """A bar of the step at work on a terminal, a line now and then elsewhere; keeps the reports."""

    def __init__(self, console: Console, pipeline: str, steps: Sequence[str] = ()) -> None:
        """`steps` in their order: the next one has its bar before it says how far it is."""
        self.reports: list[StepReport] = []
        self.notes: list[str] = []
        self._console, self._pipeline, self._steps = console, pipeline, steps
        self._drawn = console.is_terminal and not console.is_dumb_terminal
        self._step, self._task = "", TaskID(0)
        self._last = time.monotonic()
        columns: list[ProgressColumn] = [
            TextColumn("{task.description:<12}"),
            BarColumn(10 if console.width < WIDE_COLUMNS else 20),
            TextColumn("{task.fields[amount]:>26}"),
        ]
        if console.width >= WIDE_COLUMNS:
            columns += [TimeElapsedColumn(), TimeRemainingColumn()]
        self._bars = Progress(*columns, console=console, disable=not self._drawn, transient=True)

    def __enter__(self) -> "TerminalProgress":
        self._bars.start()
        self._show(next(iter(self._steps), ""))
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
            self._console.print(f"{self._pipeline} {step}: {amount}")

    def note(self, text: str) -> None:
        self.notes.append(text)
        print_words(self._console, f"{self._pipeline} note: {printable(text)}", "yellow")

    def finish(self, report: StepReport) -> None:
        self.reports.append(report)
        start = f"{self._pipeline} {report.step:<12} "
        line = _fold(self._console, sentence(report), " " * len(start))
        self._console.print(start + line, soft_wrap=True)
        following = dict(zip(self._steps, self._steps[1:], strict=False))
        self._show(following.get(report.step, ""))

    def _show(self, step: str) -> None:
        """One bar, of the step at work; it pulses until the step says how far it is."""
        if self._drawn and step != self._step:
            if self._step:
                self._bars.remove_task(self._task)
            if step:
                self._task = self._bars.add_task(step, total=None, amount="")
            self._step = step


def words_of(seconds: float) -> str:
    """`0.4 s`, `42 s`, `3 min 5 s`, `2 h 10 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def print_words(console: Console, text: str, style: str = "", indent: str = "") -> None:
    """Sentences; a terminal breaks them between words, never within a path. What follows a break
    stands behind the indent, or as far in as its line does."""
    lines = []
    for line in text.split("\n"):
        own = line[: len(line) - len(line.lstrip())]
        lines.append(own + _fold(console, line.lstrip(), own or indent))
    console.print("\n".join(lines), style=style, soft_wrap=True)


class _Warnings(logging.Handler):
    """Shows records as sentences on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        print_words(make_console(stderr=True), self.format(record))


@contextlib.contextmanager
def printed_warnings() -> Iterator[None]:
    """Meanwhile warnings that nobody else handles are lines for people: Python's own way breaks
    none."""
    before, logging.lastResort = logging.lastResort, _Warnings(logging.WARNING)
    try:
        yield
    finally:
        logging.lastResort = before


def say(*lines: str) -> None:
    """Lines on stdout, none of them broken."""
    print(*map(without_controls, lines), sep="\n", file=sys.stdout)


def print_table(
    console: Console,
    rows: Sequence[Mapping[str, Any]],
    cut: Sequence[str] = (),
    faint: Collection[int] = (),
) -> None:
    """Rows of equal keys below a heading, a line each. On a terminal the texts of the columns `cut`
    (by default the last) are cut where a line would not fit, and left out, the first of several
    first, where it would not fit even so; ids and figures stay whole. The rows with the numbers
    `faint` are grey."""
    names, widths = [*cut] or list(rows[0])[-1:], _widths(rows)
    while len(names) > 1 and _excess(console, _narrowest(widths, names)) > 0:
        del widths[names.pop(0)]
    columns = {name: [_cell(row[name]) for row in rows] for name in widths}
    is_figure = {name: all(map(FIGURE.fullmatch, cells)) for name, cells in columns.items()}
    titles = {name: name.replace("_", " ") for name in columns}
    excess = _excess(console, widths)
    texts = [name for name in names if not is_figure[name]]
    while excess > 0 and (name := max(texts, key=widths.__getitem__, default="")):
        if widths[name] <= CUT_WIDTH:
            break
        widths[name], excess = widths[name] - 1, excess - 1
    lines = (
        titles,
        *(dict(zip(columns, line, strict=True)) for line in zip(*columns.values(), strict=True)),
    )
    for number, cells in enumerate(lines, -1):
        line = (" " * GAP).join(
            _fit(cells[name], widths[name], is_figure[name]) for name in columns
        )
        console.print(Text(line.rstrip(), "dim" if number in faint else ""), soft_wrap=True)


def fits(console: Console, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether `print_table` cuts nothing."""
    return _excess(console, _widths(rows)) <= 0


def _widths(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How wide each column is, with its title."""
    return {
        name: max(map(cell_len, (name.replace("_", " "), *(_cell(row[name]) for row in rows))))
        for name in rows[0]
    }


def _narrowest(widths: Mapping[str, int], cut: Collection[str]) -> dict[str, int]:
    """The widths where these columns are cut as far as they may be."""
    return {name: min(width, CUT_WIDTH) if name in cut else width for name, width in widths.items()}


def _excess(console: Console, widths: Mapping[str, int]) -> int:
    return sum(widths.values()) + GAP * (len(widths) - 1) - console.width


def _fit(text: str, width: int, is_figure: bool) -> str:
    """The text in a column: figures to the right, texts to the left and cut if they are longer."""
    if cell_len(text) > width:
        return set_cell_size(text, width - 1) + "…"
    space = " " * (width - cell_len(text))
    return space + text if is_figure else text + space


def print_statistics(console: Console, title: str, statistics: Mapping[str, Any]) -> None:
    """Names and values below a title. Only words are folded, so that a path can be copied."""
    console.print(Text(title, style="bold"), soft_wrap=True)
    width = max(map(len, statistics))
    for name, value in statistics.items():
        console.print(f"  {name.replace('_', ' '):<{width}}  ", end="", soft_wrap=True)
        console.print(_fold(console, _cell(value), " " * (width + 4)), soft_wrap=True)


def print_rejected(console: Console, rows: Sequence[Mapping[str, str]]) -> None:
    """Where, why, and on a terminal an excerpt of what was rejected."""
    for row in rows:
        line = f"{row['place']}: {row['reason']}"
        console.print(_fold(console, line, "    "), soft_wrap=True)
        if content := printable(row["content"]):  # an image has no text
            text = _fold(console, content, "    ", EXCERPT_LINES)
            console.print(Text(f"    {text}", style="dim"), soft_wrap=True)


def print_hits(console: Console, result: "SearchResult | SearchAnswer") -> None:
    """Search results, nearest first; on a terminal an excerpt of each. Digests of images say nothing
    to people."""
    from embedding_pipelines.access import SEES_NOTHING
    from embedding_pipelines.sources.images import DIGESTS

    hits: Sequence[Hit | SearchHit] = result.hits
    for rank, hit in enumerate(hits, 1):
        line = Text(f"{rank:>2}  {hit.score:.3f}  {printable(hit.document_id)}", style="bold")
        unsaid = DIGESTS if hit.metadata.keys() >= {*DIGESTS} else ()
        for name, value in hit.metadata.items():
            if name in unsaid:
                continue
            line.append(f"  {name}={_cell(value)}", style="not bold dim")
        console.print(line, soft_wrap=True)
        if hit.text:
            text = _fold(console, printable(hit.text), EXCERPT_INDENT, EXCERPT_LINES)
            console.print(f"{EXCERPT_INDENT}{text}", soft_wrap=True)
    nothing = "" if result.hits else "nothing found, "
    if SEES_NOTHING in result.notes:
        nothing = "the permissions show no document to those for whom it is read, "
    seconds = result.milliseconds / 1000
    mode = "" if result.mode == "vector" else f" by {result.mode}"
    mode += f", reranked by {result.reranked_by}" if result.reranked_by else ""
    release = f"release {result.release}" if result.release else "before its first release"
    summary = f"{result.pipeline}, {release}{mode}: {nothing}{seconds:.2f} s"
    console.print(Text(summary, style="dim"), soft_wrap=True)


def _fold(console: Console, text: str, indent: str, max_lines: int | None = None) -> str:
    """The text as lines that fit a terminal behind an indent; in a pipe it stays one line."""
    text = without_controls(text)
    if not console.is_terminal:
        return text
    lines = textwrap.wrap(
        text,
        max(console.width - len(indent) - 1, 20),
        max_lines=max_lines,
        placeholder=" …",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return f"\n{indent}".join(lines)


def printable(text: str) -> str:
    """The text on one line: white space and control characters become single spaces."""
    return " ".join(without_controls(text).split())


def without_controls(text: str) -> str:
    """The text with a space for each character that a terminal would obey: escape sequences, line
    ends, a change of the writing direction. Joiners stay, as scripts and emoji need them."""
    return "".join(letter if letter.isprintable() or letter in JOINERS else " " for letter in text)


def figure(value: float | None, style: str) -> str:
    """The number in a format such as ".4f", or a dash."""
    return "-" if value is None else format(value, style)


def _cell(value: Any) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, list):
        return ", ".join(
            figure(each, ".3f") if isinstance(each, float) else _cell(each) for each in value
        )
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,}"
    return printable(str(value))
