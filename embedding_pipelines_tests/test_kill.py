"""A real process, killed for real: nothing that was committed is embedded again, and the end is the
same."""

import os
import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from embedding_pipelines.environment import HOME_VARIABLE
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import assert_same_rows, live_rows, write_csv, write_pipeline
from embedding_pipelines_tests.commands import EXECUTABLE
from embedding_pipelines_tests.runs import run_whole

pytestmark = [pytest.mark.slow]

MINILM = """\
source: {kind: csv, path: data/*.csv, id: id, text: [title], metadata: [cat]}
model: hf:sentence-transformers/all-MiniLM-L6-v2
evaluation: {known_items: 0}  # so that the cache holds the chunks alone
"""
HASHING = MINILM.replace("hf:sentence-transformers/all-MiniLM-L6-v2", "{provider: hashing}")
TEXTS = 1_500
KILLS, FEWER_KILLS = 10, 4
SEED = 20_260_101
GOODS = [
    "lamp",
    "chair",
    "kettle",
    "bicycle",
    "violin",
    "tent",
    "camera",
    "rope",
    "helmet",
    "carpet",
]
WORDS = [
    "red",
    "light",
    "folding",
    "old",
    "heavy",
    "quiet",
    "wooden",
    "cheap",
    "round",
    "striped",
    "narrow",
    "soft",
]
# Files that appear one after the other while the table is written, checked and released.
WRITTEN_LATE = [
    "tables/*/data/*",
    "tables/*/_versions/*",
    "*/*/vector_store.json",
    "*/*/checks.json",
    "tables/*/_refs/**/*",
]


@pytest.fixture
def rows() -> list[tuple[int, str, str]]:
    generator = random.Random(SEED)
    return [
        (
            number,
            f"A {' '.join(generator.sample(WORDS, 5))} {generator.choice(GOODS)}, article {number}",
            "shop",
        )
        for number in range(TEXTS)
    ]


@pytest.fixture
def start(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], "subprocess.Popen[str]"]:
    """Starts `embedding-pipelines run shop` in the home folder."""
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    environment = {**os.environ, HOME_VARIABLE: str(home)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return lambda: subprocess.Popen([EXECUTABLE, "run", "shop"], env=environment, **pipes)


def _undisturbed(
    tmp_path_factory: pytest.TempPathFactory, text: str, rows: list[tuple[int, str, str]]
) -> Any:
    """The live rows of a run from nothing to the end, in a home of its own."""
    home = tmp_path_factory.mktemp("undisturbed")
    write_pipeline(home, "shop", text)
    write_csv(home, "shop.csv", rows)
    run_whole(home, "shop")
    return live_rows(home, "shop")


def _committed(home: Path) -> dict[bytes, int]:
    """Key and row id of every vector in the cache; a text that is embedded again gets another row
    id."""
    path = Warehouse(home).cache
    if not path.exists():
        return {}
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=60)) as database:
        try:
            return dict(database.execute("SELECT key, rowid FROM vectors").fetchall())
        except sqlite3.OperationalError:  # it was made just now and has no table yet
            return {}


def _kill_when(
    process: "subprocess.Popen[str]", reached: Callable[[], bool], pause_seconds: float
) -> bool:
    """Kill the process a moment after something is reached; False if it ended by itself before."""
    while process.poll() is None:
        if reached():
            time.sleep(pause_seconds)
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def test_kills_while_embedding_embed_nothing_twice_and_end_as_an_undisturbed_run(
    home: Path,
    rows: list[tuple[int, str, str]],
    start: Callable[[], "subprocess.Popen[str]"],
    tmp_path_factory: pytest.TempPathFactory,
    at_length: bool,
) -> None:
    kills = KILLS if at_length else FEWER_KILLS
    write_pipeline(home, "shop", MINILM)
    write_csv(home, "shop.csv", rows)
    generator = random.Random(SEED)
    committed: dict[bytes, int] = {}
    killed = 0
    for target in sorted(generator.sample(range(TEXTS - 100), kills)):
        pause = generator.uniform(0, 0.2)  # about what one partition of texts takes
        killed += _kill_when(start(), lambda target=target: len(_committed(home)) > target, pause)  # type: ignore[misc]
        now = _committed(home)
        assert committed.items() <= now.items()
        committed = now
    assert killed == kills
    assert 0 < len(committed) < TEXTS

    finished = run_whole(home, "shop")
    assert finished.reports["embeddings"].statistics["embedded"] == TEXTS - len(committed)
    assert committed.items() <= _committed(home).items()
    assert len(_committed(home)) == TEXTS
    assert_same_rows(live_rows(home, "shop"), _undisturbed(tmp_path_factory, MINILM, rows))


def test_kills_while_the_table_is_written_and_released_end_as_an_undisturbed_run(
    home: Path,
    rows: list[tuple[int, str, str]],
    start: Callable[[], "subprocess.Popen[str]"],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    write_pipeline(home, "shop", HASHING)
    write_csv(home, "shop.csv", rows)
    warehouse = Warehouse(home).root
    for pattern in WRITTEN_LATE:
        before = set(warehouse.glob(pattern))
        _kill_when(
            start(),
            lambda before=before, pattern=pattern: bool(set(warehouse.glob(pattern)) - before),
            0,
        )  # type: ignore[misc]
    run_whole(home, "shop")
    assert_same_rows(live_rows(home, "shop"), _undisturbed(tmp_path_factory, HASHING, rows))


def test_ctrl_c_ends_with_130_and_one_sentence(
    home: Path, rows: list[tuple[int, str, str]], start: Callable[[], "subprocess.Popen[str]"]
) -> None:
    write_pipeline(home, "shop", MINILM)
    write_csv(home, "shop.csv", rows)
    process = start()
    while process.poll() is None and not _committed(home):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "Stopped. What was embedded is kept: the same command goes on from there.\n"
    committed = len(_committed(home))
    assert committed
    assert run_whole(home, "shop").reports["embeddings"].statistics["embedded"] == TEXTS - committed
