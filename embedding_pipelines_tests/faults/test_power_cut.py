"""After a power cut at any moment the live release answers as before, and the next run ends as if
nothing had been."""

import contextlib
import random
import shutil
from pathlib import Path

import pytest

from embedding_pipelines.releases import is_readable, live_release, read_releases
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import (
    assert_same_rows,
    live_rows,
    run_of,
    run_steps,
    top,
    write_csv,
    write_pipeline,
)
from embedding_pipelines_tests.conftest import HASHING
from embedding_pipelines_tests.faults.power_cut import Recorder, cut
from embedding_pipelines_tests.steps.test_crash import Died, Fuse, watch

PIPELINE = HASHING.replace("partitions: 4", "partitions: 2") + "compression: [float16]\n"
OLD = [(f"id-{n}", f"old text {n}", "c") for n in range(40)]
NEW = [("id-0", "new text zero", "c"), *OLD[2:], ("id-99", "new text added", "d")]
CUTS = 4


def answers(home: Path) -> list[str]:
    """Searches the live release, and opens all others."""
    folder = Warehouse(home).pipeline("p")
    assert all(is_readable(folder, entry) for entry in read_releases(folder).releases)
    return top(home, "p", "old text 5", k=3)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("released")
    write_pipeline(home, "p", PIPELINE)
    write_csv(home, "a.csv", OLD)
    run_steps(home, "p")
    write_csv(home, "a.csv", NEW)
    return home


@pytest.mark.parametrize("seed", range(CUTS))
def test_a_cut_after_a_run_loses_no_release(released: Path, tmp_path: Path, seed: int) -> None:
    home = tmp_path / "home"
    shutil.copytree(released, home)
    with Recorder(home / "data" / "warehouse", tmp_path / "before") as recorder:
        run_steps(home, "p")
    rows, before = live_rows(home, "p"), answers(home)
    number = live_release(run_of(home, "p").folder).number
    cut(recorder, random.Random(seed))
    assert live_release(run_of(home, "p").folder).number == number == 2
    assert answers(home) == before
    run_steps(home, "p")
    assert_same_rows(live_rows(home, "p"), rows)
    assert answers(home) == before


@pytest.mark.parametrize("seed", range(CUTS))
def test_a_cut_during_a_run_loses_no_release(released: Path, tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    home = tmp_path / "home"
    shutil.copytree(released, home)
    recorder = Recorder(home / "data" / "warehouse", tmp_path / "before")
    with recorder, pytest.MonkeyPatch.context() as patch:
        watch(Fuse(dice.randrange(1, 40), after=dice.random() < 0.5), patch)
        with contextlib.suppress(Died):
            run_steps(home, "p")
    number = live_release(run_of(home, "p").folder).number
    cut(recorder, dice)
    assert live_release(run_of(home, "p").folder).number in (1, number)
    assert "id-5" in answers(home)
    run_steps(home, "p")
    assert len(live_rows(home, "p")) == len(NEW)
    assert top(home, "p", "new text added") == ["id-99"]
    assert top(home, "p", "new text zero") == ["id-0"]


def test_a_cut_in_a_first_run_is_made_up_for(tmp_path: Path) -> None:
    for seed in range(CUTS):
        dice, home = random.Random(seed), tmp_path / str(seed)
        write_pipeline(home, "p", PIPELINE)
        write_csv(home, "a.csv", OLD)
        recorder = Recorder(home / "data" / "warehouse", tmp_path / f"before-{seed}")
        with recorder, pytest.MonkeyPatch.context() as patch:
            watch(Fuse(dice.randrange(1, 40), after=True), patch)
            with contextlib.suppress(Died):
                run_steps(home, "p")
        cut(recorder, dice)
        run_steps(home, "p")
        assert len(live_rows(home, "p")) == len(OLD)
        assert top(home, "p", "old text 5") == ["id-5"]
