"""A few damages; `python -m embedding_pipelines_tests.faults.damage 1000` tries many."""

import random
from pathlib import Path

import pytest

from embedding_pipelines_tests.faults.damage import FAULTS, build, files_of, sweep, try_damage

STATES = ["{}", "[]", "null", "another letter", "cut short", "deep", "other types"]


def test_no_damage_is_served_or_ends_in_a_traceback(home: Path, tmp_path: Path) -> None:
    results = list(sweep(8, 100, tmp_path))
    assert [result for result in results if result.outcome in FAULTS] == []


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    build(folder)
    return folder


@pytest.mark.slow
def test_every_state_file_of_another_shape_is_healed_or_told(built: Path, tmp_path: Path) -> None:
    """Each file once, and each kind of damage about as often."""
    states = [path for path in files_of(built) if path.suffix in (".json", ".jsonl")]
    assert len(states) > 10
    for number, path in enumerate(states):
        kind = STATES[number % len(STATES)]
        file = path.relative_to(built).as_posix()
        result = try_damage(built, tmp_path / "home", file, kind, random.Random(number))
        assert result.outcome not in FAULTS, result
