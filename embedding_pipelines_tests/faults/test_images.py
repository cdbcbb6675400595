"""A few hostile images of each kind, and that the check sees a wrong one."""

from pathlib import Path

import pytest

from embedding_pipelines_tests.faults import images


def test_hostile_images_are_read_or_rejected_one_by_one(tmp_path: Path) -> None:
    outcome = images.attack(tmp_path, 2 * len(images.KINDS), seed=3)
    assert outcome.wrong == []
    assert {became for _, became in outcome.fates} == {"read", "rejected"}


def test_a_file_that_has_another_fate_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(images.KINDS, "misnamed", lambda chance: ("read", "png", b"no image"))
    outcome = images.attack(tmp_path, 1, kinds=("misnamed",))
    assert len(outcome.wrong) == 1
    assert "misnamed was rejected, not read" in outcome.wrong[0]
