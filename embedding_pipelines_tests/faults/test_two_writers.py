"""A few rounds of `two_writers`."""

from pathlib import Path

from embedding_pipelines_tests.faults.two_writers import try_two


def test_two_writers_that_are_killed_and_sleep_lose_nothing(tmp_path: Path) -> None:
    outcome = try_two(4, (tmp_path / "bucket").as_uri(), tmp_path, seed=7)
    assert outcome.problems == []
    assert outcome.acknowledged
