"""A run that dies at any write is made up for by the next: same table, nothing embedded twice, and
the live release is searchable all the time.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.environment import HOME_VARIABLE
from embedding_pipelines.errors import BusyError
from embedding_pipelines.releases import read_releases, rollback
from embedding_pipelines.stores.lancedb import LanceTable
from embedding_pipelines_tests.chain import (
    assert_same_rows,
    live_rows,
    run_of,
    run_recorded,
    run_steps,
    top,
    write_csv,
    write_pipeline,
)
from embedding_pipelines_tests.recording import Recording

PIPELINE = """\
source: {kind: csv, path: 'data/*.csv', id: id, text: [title], metadata: [cat]}
model: {provider: hashing}
compression: [float16]
store: {kind: lancedb, keep_releases: 2}
partitions: 2
"""
OLD = [(f"id-{n}", f"old text {n}", "c") for n in range(12)]
NEW = [
    ("id-0", "new text zero", "c"),
    *OLD[2:],
    ("id-99", "new text added", "d"),
]  # 1 edited, 1 deleted, 1 added


class Died(BaseException):
    """Stands for `kill -9`: nothing may catch it and go on."""


class Fuse:
    """Lets the first calls through and dies at call `at`, before or after doing what it wraps."""

    def __init__(self, at: int | None, after: bool) -> None:
        self.at, self.after, self.calls = at, after, 0

    def wrap(self, function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            self.calls += 1
            number = self.calls
            if number == self.at and not self.after:
                raise Died
            result = function(*args, **options)
            if number == self.at:
                raise Died
            return result

        return call


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """A home whose first release holds OLD and whose file already says NEW, for copies."""
    home = tmp_path_factory.mktemp("released")
    write_pipeline(home, "p", PIPELINE)
    write_csv(home, "a.csv", OLD)
    run_steps(home, "p")
    write_csv(home, "a.csv", NEW)
    return home


@pytest.fixture(scope="module")
def undisturbed(released: Path, tmp_path_factory) -> dict[str, dict[str, object]]:
    home = tmp_path_factory.mktemp("undisturbed") / "home"
    shutil.copytree(released, home)
    run_steps(home, "p")
    return live_rows(home, "p")


def watch(fuse: Fuse, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rename, every commit to the cache and every commit to the table passes the fuse."""
    monkeypatch.setattr(os, "replace", fuse.wrap(os.replace))
    monkeypatch.setattr(Path, "replace", fuse.wrap(Path.replace))
    monkeypatch.setattr(EmbeddingCache, "put_many", fuse.wrap(EmbeddingCache.put_many))
    for method in ("apply", "index", "tag"):
        monkeypatch.setattr(LanceTable, method, fuse.wrap(getattr(LanceTable, method)))
    from lancedb.table import LanceTable as Lance

    for method in ("delete", "add", "optimize"):
        monkeypatch.setattr(Lance, method, fuse.wrap(getattr(Lance, method)))


def die(home: Path, at: int, after: bool) -> tuple[bool, list[str]]:
    """Run until the fuse blows; whether it did, and what was embedded until then."""
    recording = Recording(run_of(home, "p").model, request_texts=1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        watch(Fuse(at, after), monkeypatch)
        try:
            run_steps(home, "p", recording)
        except Died:
            return True, recording.texts
    return False, recording.texts


@pytest.mark.parametrize(  # after one write is nearly before the next
    ("after", "first", "step"),
    [
        (False, 1, 4),
        *(pytest.param(False, first, 4, marks=pytest.mark.slow) for first in (2, 3, 4)),
        (True, 5, 5),
    ],
)
def test_an_update_that_dies_at_any_write_is_made_up_for(
    released: Path,
    undisturbed: dict[str, dict[str, object]],
    tmp_path: Path,
    after: bool,
    first: int,
    step: int,
) -> None:
    at, ended = first - step, False
    while not ended:
        at += step
        home = tmp_path / str(at)
        shutil.copytree(released, home)  # with its modification times
        died, embedded = die(home, at, after)
        ended = not died
        number = read_releases(run_of(home, "p").folder).live
        assert len(live_rows(home, "p")) == 12
        assert top(home, "p", "old text 5") == ["id-5"]
        assert top(home, "p", "old text 0" if number == 1 else "new text zero") == ["id-0"]
        _, again = run_recorded(home, "p")
        assert len({*embedded, *again}) == 2
        assert len(embedded) + len(again) <= 3  # the one call that was not committed
        assert_same_rows(live_rows(home, "p"), undisturbed)
        assert [entry.number for entry in read_releases(run_of(home, "p").folder).releases] == [
            1,
            2,
        ]
        assert run_recorded(home, "p")[1] == []
        shutil.rmtree(home)
    assert at > 20  # so many writes were tried


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_first_run_that_dies_at_any_write_is_made_up_for(tmp_path: Path, after: bool) -> None:
    at, ended = 0, False
    while not ended:
        at += 4
        home = tmp_path / str(at)
        write_pipeline(home, "p", PIPELINE)
        write_csv(home, "a.csv", OLD)
        died, embedded = die(home, at, after)
        ended = not died
        _, again = run_recorded(home, "p")
        assert {*embedded, *again} == {text for _, text, _ in OLD}
        assert len(embedded) + len(again) <= len(OLD) + 1
        assert len(live_rows(home, "p")) == len(OLD)
        shutil.rmtree(home)


def test_files_put_back_after_a_crash_are_read_again(released: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(released, home)
    for name in ("a.csv", "b.csv"):
        write_csv(home, name, [(f"{name}-{n}", f"kept text {n}", "c") for n in range(8)])
    run_steps(home, "p")
    before = live_rows(home, "p")
    for at in range(1, 9):
        os.rename(home / "data" / "b.csv", home / "b.csv")
        os.rename(home / "data" / "a.csv", home / "a.csv")
        write_csv(home, "a.csv", [(f"a.csv-{n}", f"lost text {n}", "c") for n in range(8)])
        die(home, at, after=True)
        os.rename(home / "b.csv", home / "data" / "b.csv")  # with the old times of modification
        os.rename(home / "a.csv", home / "data" / "a.csv")
        run_steps(home, "p")
        assert_same_rows(live_rows(home, "p"), before)


def test_a_table_that_was_never_committed_or_was_deleted_is_made_anew(
    released: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(released, home)
    for n in range(3):
        write_csv(home, "a.csv", [*OLD, ("x", f"extra text {n}", "c")])
        run_steps(home, "p")
    (folder,) = (home / "data" / "warehouse" / "tables").glob("*.lance")
    for half_made in (False, True):
        shutil.rmtree(folder)
        if half_made:
            (folder / "data").mkdir(parents=True)
        assert run_recorded(home, "p")[1] == []
        assert top(home, "p", "extra text 2") == ["x"]
        assert len(live_rows(home, "p")) == 13


RUNNER = """
import sys, time
from pathlib import Path
from embedding_pipelines_tests import chain
from embedding_pipelines_tests.recording import Recording
home = Path(sys.argv[1])
class Slow(Recording):
    def embed(self, inputs, input_type):
        time.sleep(0.02)
        vectors = super().embed(inputs, input_type)
        with (home / "embedded.log").open("a") as log:
            log.writelines(text + "\\n" for text in inputs)
        return vectors
chain.run_steps(home, "p", Slow(chain.run_of(home, "p").model, request_texts=5))
"""


def test_a_real_kill_in_the_middle_of_embedding_costs_one_call_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pipeline(tmp_path, "p", PIPELINE)
    write_csv(tmp_path, "a.csv", [(n, f"text number {n}", "c") for n in range(300)])
    log = tmp_path / "embedded.log"
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    kills = 3
    for kill in range(kills):
        process = subprocess.Popen([sys.executable, "-c", RUNNER, str(tmp_path)])
        deadline = time.monotonic() + 60
        while not log.exists() or len(log.read_text().splitlines()) < 40 * (kill + 1):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    embedded = log.read_text().splitlines()
    _, rest = run_recorded(tmp_path, "p")
    assert {*embedded, *rest} == {f"text number {n}" for n in range(300)}
    assert len(embedded) + len(rest) <= 300 + 5 * kills
    assert rest
    assert len(live_rows(tmp_path, "p")) == 300


def test_a_pipeline_that_another_process_holds_is_busy(home: Path) -> None:
    write_pipeline(home, "p", PIPELINE)
    write_csv(home, "a.csv", OLD)
    run_steps(home, "p")
    folder = run_of(home, "p").folder
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom embedding_pipelines.storage.warehouse import Warehouse\n"
        "with Warehouse(Path(sys.argv[1])).pipeline('p').lock():\n print('held', flush=True)\n time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(home)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(BusyError, match="'p' is being run by another process"):
        rollback(folder, None)
    assert top(home, "p", "old text 5") == ["id-5"]  # readers do not wait
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with folder.lock(timeout_seconds=5):  # a dead process holds nothing
        pass
