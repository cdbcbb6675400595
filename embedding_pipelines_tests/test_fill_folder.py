"""Folders that are made once: whole or not there, and never removed from under whoever has them
open."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from embedding_pipelines.files import fill_folder, temporary_folder

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


KILLED = """
import os, signal, sys
from pathlib import Path
from embedding_pipelines.files import fill_folder, temporary_folder
with fill_folder(Path(sys.argv[1]), "config.json") as draft:
    (draft / "half").write_text("x" * 1_000)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_goes_and_what_a_living_one_fills_stays(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "model")], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    with temporary_folder(tmp_path, ".model-") as living:
        assert not left.exists()
        with temporary_folder(tmp_path, ".model-") as other:
            assert living.exists()
            assert other != living
        assert list(tmp_path.iterdir()) == [living]
    assert list(tmp_path.iterdir()) == []


def test_only_folders_of_that_name_are_taken_for_left(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "precious").mkdir(parents=True)
    (tmp_path / ".model-link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".model-file").write_text("a file")
    (tmp_path / ".other-left").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with temporary_folder(tmp_path, ".model-"):
        pass
    assert sorted(tmp_path.rglob("*")) == before
