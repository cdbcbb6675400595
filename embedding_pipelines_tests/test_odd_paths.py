"""A home and its source may lie below any path that the system allows, and leave nothing outside."""

from pathlib import Path

import pytest

from embedding_pipelines.orchestration.instance import ensure_instance_folder, open_instance
from embedding_pipelines.releases import live_release
from embedding_pipelines_tests.chain import (
    run_of,
    run_steps,
    top,
    write_csv,
    write_pipeline,
)
from embedding_pipelines_tests.conftest import HASHING

ROWS = [(number, f"word{number % 7} text number {number}", "c") for number in range(30)]
NAMES = ["josé #1", "a%20b?", "日本 %3F", "~[x] {y}", "a\\b'\"&;$"]


@pytest.mark.parametrize("name", NAMES)
def test_a_pipeline_runs_below_any_path_and_in_no_other(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / name
    monkeypatch.setenv("EMBEDDING_PIPELINES_HOME", str(home))
    write_pipeline(home, "p", HASHING)
    write_csv(home, f"{name}.csv", ROWS)
    run_steps(home, "p")
    write_csv(home, f"{name}.csv", ROWS[1:])
    run_steps(home, "p")
    assert live_release(run_of(home, "p").folder).number == 2
    assert top(home, "p", "word3 text number 3") == ["3"]
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a?b", "a%20b"])
def test_dagster_keeps_its_records_below_the_home(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "temporary").mkdir()
    home = tmp_path / name
    link = ensure_instance_folder(home)
    assert link.resolve() == home / "data" / "warehouse" / "dagster"
    assert not {"?", "%"} & set(str(link))
    with open_instance(home) as instance:
        assert instance.get_runs() == []
    assert (link / "history" / "runs.db").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, "temporary"]
