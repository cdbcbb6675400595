"""What the command line shows, on terminals wide and narrow and in a pipe."""

import io
import logging
from itertools import pairwise
from typing import Any

import pytest
from rich.console import Console

from embedding_pipelines.access import SEES_NOTHING
from embedding_pipelines.cli import terminal
from embedding_pipelines.cli.terminal import (
    TerminalProgress,
    counted,
    make_console,
    print_hits,
    print_rejected,
    print_statistics,
    print_table,
    print_words,
    printable,
    printed_warnings,
    sentence,
)
from embedding_pipelines.progress import StepReport
from embedding_pipelines.search import Hit, SearchResult
from embedding_pipelines.steps.chain import CHAIN

STEPS = [step.name for step in CHAIN]
STATISTICS: dict[str, dict[str, Any]] = {
    "documents": {"documents": 1, "files": 1, "rejected": 0},
    "old_line": {"words": "release 2"},
    "chunks": {"chunks": 2, "tokens": 1_234, "empty": 0},
    "train": {"texts": 2, "dimensions": 16},
    "embeddings": {
        "vectors": 2,
        "embedded": 1,
        "reused": 1,
        "unchanged": 0,
        "tokens_per_second": 5_000,
    },
    "codec": {"dimensions": 384, "dtype": "float32", "bytes_per_vector": 1_536},
    "vector_store": {"rows": 2, "added": 2, "removed": 0},
    "checks": {"checks": 13, "passed": 12, "recall_at_10": 0.9912, "known_item_recall": 0.87},
    "release": {"release": 3, "live": 3},
    "output": {"rows": 2, "of_release": 3, "output": "out", "written": 2},
}


def _console(width: int = 80, **options: Any) -> tuple[Console, io.StringIO]:
    written = io.StringIO()
    return make_console(file=written, width=width, **options), written


def _result(text: str, document_id: str = "d", **metadata: Any) -> SearchResult:
    hit = Hit(
        score=0.5,
        chunk_id="d#0",
        document_id=document_id,
        start=0,
        end=1,
        text=text,
        metadata=metadata,
    )
    return SearchResult(
        pipeline="p", release=2, space_id="s", query="q", hits=[hit], milliseconds=1_234.5
    )


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("documents", "1 document from 1 file, 0 rejected (2.0 s)"),
        ("chunks", "2 chunks, 1,234 tokens, 0 empty documents (2.0 s)"),
        (
            "embeddings",
            "2 vectors: 1 embedded, 1 from the cache, 0 unchanged, 5,000 tokens/s (2.0 s)",
        ),
        ("codec", "384 x float32, 1,536 bytes each (2.0 s)"),
        ("vector_store", "2 rows: 2 added, 0 removed (2.0 s)"),
        ("checks", "12 of 13 passed, known items 0.870, recall@10 0.991 (2.0 s)"),
        ("release", "release 3, live: 3 (2.0 s)"),
    ],
)
def test_a_report_is_a_sentence(step: str, said: str) -> None:
    assert sentence(StepReport(step, True, STATISTICS[step], seconds=2.0)) == said


def test_what_a_step_says_of_errors_and_costs_stands_at_the_end() -> None:
    statistics = STATISTICS["embeddings"] | {"rejected": 3, "usd": 0.5}
    assert sentence(StepReport("embeddings", True, statistics)) == (
        "2 vectors: 1 embedded, 1 from the cache, 0 unchanged, 3 rejected (see status), 0.5000 USD, "
        "5,000 tokens/s (0.0 s)"
    )
    rejected = STATISTICS["documents"] | {"rejected": 3}
    assert sentence(StepReport("documents", True, rejected)) == (
        "1 document from 1 file, 3 rejected (0.0 s)"
    )


def test_a_step_without_work_says_so() -> None:
    assert (
        sentence(StepReport("release", False, STATISTICS["release"]))
        == "release 3, live: 3 (unchanged)"
    )


def test_nouns_follow_their_number() -> None:
    assert [counted(number, "file") for number in (0, 1, 2_000)] == [
        "0 files",
        "1 file",
        "2,000 files",
    ]


def test_a_pipe_gets_plain_whole_lines() -> None:
    console, written = _console(width=20)
    with TerminalProgress(console, "products") as progress:
        for step in STEPS:
            progress.update(step, 1, 2, "rows")
            progress.finish(StepReport(step, True, STATISTICS[step], seconds=2.0))
    lines = written.getvalue().splitlines()
    assert [line.split()[:2] for line in lines] == [["products", step] for step in STEPS]
    assert "\x1b" not in written.getvalue()
    assert [report.step for report in progress.reports] == STEPS


def test_a_pipe_hears_of_long_steps_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "PLAIN_SECONDS", 0.0)
    console, written = _console()
    with TerminalProgress(console, "products") as progress:
        progress.update("embeddings", 1_000, 2_000, "tokens")
    assert written.getvalue() == "products embeddings: 1,000/2,000 tokens\n"


@pytest.mark.parametrize("width", [60, 79, 80, 200])
def test_a_terminal_gets_one_bar_that_fits_on_a_line(width: int) -> None:
    console, _ = _console(width=width, force_terminal=True)
    with TerminalProgress(console, "p") as progress:
        progress.update("embeddings", 1_000_000, 1_200_000, "tokens")
    shown, written = _console(width=width, force_terminal=True, color_system=None)
    shown.print(progress._bars.get_renderable())
    (line,) = written.getvalue().splitlines()
    assert line.startswith("embeddings ")
    assert " 1,000,000/1,200,000 tokens" in line


def test_a_bar_waits_for_the_next_step() -> None:
    console, _ = _console(force_terminal=True)
    with TerminalProgress(console, "p", STEPS) as progress:
        for step, next_step in pairwise(STEPS):
            assert [task.description for task in progress._bars.tasks] == [step]
            progress.finish(StepReport(step, True, STATISTICS[step]))
            assert [task.description for task in progress._bars.tasks] == [next_step]
        progress.finish(StepReport(STEPS[-1], True, STATISTICS[STEPS[-1]]))
        assert not progress._bars.tasks


def test_a_note_is_shown_with_its_pipeline() -> None:
    console, written = _console()
    TerminalProgress(console, "p").note("a.csv is cp1252 [not UTF-8]")
    assert written.getvalue() == "p note: a.csv is cp1252 [not UTF-8]\n"


def test_a_table_aligns_numbers_to_the_right_and_is_whole_in_a_pipe() -> None:
    console, written = _console(width=10)
    rows: list[dict[str, Any]] = [
        {"pipeline": "a", "live_rows": 1_000, "model": "x" * 40},
        {"pipeline": "bb", "live_rows": None, "model": ""},
    ]
    print_table(console, rows)
    assert written.getvalue().splitlines() == [
        "pipeline  live rows  model",
        f"a             1,000  {'x' * 40}",
        "bb                -",
    ]


def test_on_a_terminal_only_the_last_text_of_a_table_is_cut() -> None:
    console, written = _console(width=40, force_terminal=True, color_system=None)
    print_table(console, [{"pipeline": "a", "rows": 1_000_000, "model": "x" * 40}])
    assert written.getvalue().splitlines() == [
        "pipeline       rows  model",
        f"a         1,000,000  {'x' * 18}…",
    ]


@pytest.mark.parametrize("width", [20, 40, 60])
def test_ids_are_whole_on_every_terminal(width: int) -> None:
    console, written = _console(width=width, force_terminal=True, color_system=None)
    rows = [{"score": "0.500", "document": "d" * 50, "text": "word " * 30}]
    print_table(console, rows)
    assert written.getvalue().splitlines()[1] == f"0.500  {'d' * 50}  word word w…"


def test_statistics_are_folded_between_words_only() -> None:
    console, written = _console(width=40, force_terminal=True, color_system=None)
    path = "/a/very/long/path/to/the/table/of/rejected.parquet"
    statistics = {"rejected_table": path, "kept": [1, 2], "none": [], "source": "1 new " * 5}
    print_statistics(console, "p", statistics)
    assert written.getvalue().splitlines() == [
        "p",
        f"  rejected table  {path}",
        "  kept            1, 2",
        "  none            -",
        "  source          1 new 1 new 1 new 1",
        "                  new 1 new",
    ]


def test_sentences_are_folded_on_a_terminal_line_by_line() -> None:
    console, written = _console(width=24, force_terminal=True, color_system=None)
    print_words(console, "error: a.yaml:1: source.path: is missing.\nb.yaml:2: is no YAML")
    assert written.getvalue().splitlines() == [
        "error: a.yaml:1:",
        "source.path: is",
        "missing.",
        "b.yaml:2: is no YAML",
    ]
    console, written = _console(width=24, force_terminal=True, color_system=None)
    print_words(console, "p: last error: documents: no such file", indent="  ")
    assert written.getvalue().splitlines() == ["p: last error:", "  documents: no such", "  file"]
    console, written = _console(width=24, force_terminal=True, color_system=None)
    print_words(console, "it failed:\n  http://127.0.0.1:9/info cannot be reached")
    assert written.getvalue().splitlines() == [
        "it failed:",
        "  http://127.0.0.1:9/info",
        "  cannot be reached",
    ]
    console, written = _console(width=24)
    print_words(console, "a sentence that is longer than a terminal")
    assert written.getvalue() == "a sentence that is longer than a terminal\n"


def test_hits_on_a_terminal_are_excerpts_with_a_margin() -> None:
    console, written = _console(width=60, force_terminal=True, color_system=None)
    print_hits(console, _result("word " * 100, module="shutil"))
    head, *excerpt, summary = written.getvalue().splitlines()
    assert head == " 1  0.500  d  module=shutil"
    assert len(excerpt) == 2
    assert all(line.startswith(" " * 11) and len(line) < 60 for line in excerpt)
    assert excerpt[-1].endswith(" …")
    assert summary == "p, release 2: 1.23 s"


def test_a_hit_of_an_image_is_a_line_without_digests() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    print_hits(console, _result("", image="ab12", format="jpeg", perceptual="cd34"))
    first, *rest = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert first.endswith("format=jpeg")
    assert "ab12" not in first
    assert len(rest) == 1
    print_hits(console, _result("A chair.", image="chair.png"))  # a column of a table of texts
    assert "image=chair.png" in console.file.getvalue()  # type: ignore[attr-defined]


def test_warnings_that_nobody_handles_are_folded_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = logging.LogRecord(
        "any", logging.WARNING, "", 0, "%s has no index: %s", ("p", "x " * 50), None
    )
    before = logging.lastResort
    with printed_warnings():
        assert logging.lastResort is not None
        logging.lastResort.handle(record)
        assert capsys.readouterr() == ("", f"p has no index: {'x ' * 50}\n")
        console = make_console(stderr=True, force_terminal=True, color_system=None, width=80)
        monkeypatch.setattr(terminal, "make_console", lambda **_: console)
        logging.lastResort.handle(record)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 2
        assert max(map(len, lines)) < 80
    assert logging.lastResort is before


def test_a_table_that_does_not_fit_with_cut_texts_is_without_the_first_of_them() -> None:
    rows = [
        {
            "overlap": "0.10",
            "document": "d" * 44,
            "text": "t" * 99,
            "added": "a" * 99,
            "removed": "r" * 9,
        }
    ]
    console, written = _console(force_terminal=True, color_system=None)
    print_table(console, rows, cut=("text", "added", "removed"))
    heading, line = written.getvalue().splitlines()
    assert heading.split() == ["overlap", "document", "added", "removed"]
    assert len(line) <= 80
    assert line.split() == ["0.10", "d" * 44, "a" * 13 + "…", "r" * 9]
    console, written = _console()  # in a pipe all is there
    print_table(console, rows, cut=("text", "added", "removed"))
    assert "t" * 99 in written.getvalue()


def test_of_a_rejected_image_there_is_no_text_to_show() -> None:
    console, written = _console()
    row = {"place": "a.csv:2", "reason": "the id is missing", "content": ",red"}
    image = {"place": "photos/b.png:1", "reason": "is no image", "content": ""}
    print_rejected(console, [row, image, row])
    lines = ["a.csv:2: the id is missing", "    ,red"]
    assert written.getvalue().splitlines() == [*lines, "photos/b.png:1: is no image", *lines]


def test_hits_in_a_pipe_are_whole() -> None:
    console, written = _console(width=60)
    print_hits(console, _result("word\n" * 100))
    assert "word " * 99 + "word" in written.getvalue()
    assert "\x1b" not in written.getvalue()


def test_an_empty_result_says_so() -> None:
    console, written = _console()
    print_hits(console, _result("x").model_copy(update={"hits": []}))
    assert written.getvalue() == "p, release 2: nothing found, 1.23 s\n"
    changes = {"hits": [], "notes": [SEES_NOTHING]}
    print_hits(console, _result("x").model_copy(update=changes))
    assert "the permissions show no document to those" in written.getvalue()


def test_data_is_shown_as_it_is_and_cannot_command_the_terminal() -> None:
    console, written = _console(force_terminal=True, color_system=None)
    print_hits(console, _result("[bold]:cat:[/bold] \x1b[31mred\x07", document_id="[a]\x1b[2J"))
    assert "[bold]:cat:[/bold] [31mred" in written.getvalue()
    assert "\x1b" not in written.getvalue()
    assert printable("a\r\n\tb\x9b") == "a b"
