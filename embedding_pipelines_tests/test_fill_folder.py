"""Folders that are made once: whole or not there, and never removed from under whoever has them
open."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from embedding_pipelines.files import fill_folder

MARKER = "config.json"


def fill(folder: Path, content: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / MARKER).write_text(content)


def test_what_was_filled_takes_its_place_and_leaves_no_draft(tmp_path: Path) -> None:
    with fill_folder(tmp_path / "cache" / "model", MARKER) as draft:
        fill(draft, "whole")
        assert not (tmp_path / "cache" / "model").exists()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["model"]
    assert (tmp_path / "cache" / "model" / MARKER).read_text() == "whole"


def fail(folder: Path) -> None:
    with fill_folder(folder, MARKER) as draft:
        fill(draft, "half")
        raise OSError("the disk is full")


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk is full"):
        fail(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_several_wins(tmp_path: Path) -> None:
    with fill_folder(tmp_path / "model", MARKER) as draft:
        fill(draft, "second")
        fill(tmp_path / "model", "first")
    assert (tmp_path / "model" / MARKER).read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_nothing_is_removed_where_nothing_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another process may put there between a look and a removal would go with it."""
    removed: list[Path] = []
    remove = shutil.rmtree

    def note(path: Path, **options: Any) -> None:
        removed.append(path)
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", note)
    for content in ("first", "second"):
        with fill_folder(tmp_path / "model", MARKER) as draft:
            fill(draft, content)
    assert tmp_path / "model" not in removed
    assert (tmp_path / "model" / MARKER).read_text() == "first"


def test_a_damaged_one_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.bin").write_bytes(b"half")
    with fill_folder(tmp_path / "model", MARKER) as draft:
        fill(draft, "whole")
    assert [path.name for path in (tmp_path / "model").iterdir()] == [MARKER]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
