"""Generations: created once, one after the other, and swept."""

import uuid
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from embedding_pipelines.errors import BucketError
from embedding_pipelines.objects import Bucket, open_folder
from embedding_pipelines.storage import generations
from embedding_pipelines.storage.generations import (
    Entry,
    File,
    Generation,
    Generations,
    OvertakenError,
)
from embedding_pipelines.storage.lease import Holder
from embedding_pipelines.storage.warehouse import file_digest

WRITER = Holder("one", "/home", "1", 42, "2026-01-02T03:04:05+00:00")
VERSION = "tables/p-1.lance/_versions/9.manifest"


@pytest.fixture
def folder(tmp_path: Path) -> Generations:
    return Generations(open_folder(tmp_path / "bucket"), "w/", "p")


def generation(before: Generation | None = None, number: int | None = None) -> Generation:
    if number is None:
        number = before.number + 1 if before else 1
    mark, follows = uuid.uuid4().hex, before.mark if before else ""
    return Generation(number, mark, follows, WRITER, "2026-01-02T03:04:05+00:00", {})


def file(path: Path, content: str) -> File:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return File(path, len(content), file_digest(path))


def put(folder: Generations, tmp_path: Path, **contents: str) -> dict[str, Entry]:
    paths = {"version": VERSION, "data": VERSION.replace("_versions/9.manifest", "data/1.lance")}
    paths["state"] = "pipelines/p/state.json"
    files = {paths[name]: file(tmp_path / name, content) for name, content in contents.items()}
    return folder.upload(files, {})


def test_of_two_that_follow_one_the_second_is_refused(folder: Generations) -> None:
    first, second = generation(), generation()
    folder.publish(first)
    with pytest.raises(OvertakenError):
        folder.publish(second)
    assert folder.newest() == 1
    assert folder.read(1) == first


def test_an_answer_that_was_lost_is_no_refusal(folder: Generations) -> None:
    first = generation()
    folder.publish(first)
    folder.publish(first)  # as a client does that sends a request again


def test_who_slept_after_it_published_has_published(
    folder: Generations, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = generation()
    newest = Generations.newest

    def sleep(self: Generations, least: int = 0) -> int | None:
        monkeypatch.undo()
        folder.publish(generation(first))
        return newest(self, least)

    monkeypatch.setattr(Generations, "newest", sleep)
    folder.publish(first)
    assert folder.newest() == 2


def test_a_number_that_was_swept_is_nobodys(folder: Generations, tmp_path: Path) -> None:
    entries, before = [generation()], generation()
    for _ in range(5):
        entries.append(generation(entries[-1]))
    for entry in entries:
        folder.publish(entry)
    for number in (1, 2, 3):
        (tmp_path / f"bucket/w/pipelines/p/generations/{number:010}.json").unlink()
    for number in (2, 3):
        with pytest.raises(OvertakenError):
            folder.publish(generation(before, number))
    assert folder.newest() == 6


def test_a_generation_that_cannot_be_read_is_named(folder: Generations, tmp_path: Path) -> None:
    folder.publish(generation())
    path = tmp_path / "bucket/w/pipelines/p/generations/0000000001.json"
    path.write_bytes(path.read_bytes().replace(b"one", b"two"))
    with pytest.raises(BucketError, match=r"0000000001\.json is damaged"):
        folder.read(1)
    with pytest.raises(BucketError, match=r"0000000002\.json is gone"):
        folder.read(2)


@pytest.mark.parametrize("path", ["../../../evil.txt", "/evil.txt", "a/../../b", "C:/x", "..\\\\x"])
def test_a_path_out_of_the_warehouse_is_damage(folder: Generations, path: str) -> None:
    evil = replace(generation(), files={path: Entry("contents/x", 1, "0")})
    folder.publish(evil)
    with pytest.raises(BucketError, match="is damaged"):
        folder.read(1)


def test_a_file_that_may_change_is_named_by_its_content(
    folder: Generations, tmp_path: Path
) -> None:
    entries = put(folder, tmp_path, version="v", data="d", state="s")
    assert {path: entry.key for path, entry in entries.items() if "tables" in path} == {
        path: path for path in entries if "tables" in path
    }
    key = entries["pipelines/p/state.json"].key
    assert key == f"pipelines/p/contents/{file_digest(tmp_path / 'state')}"
    copy = tmp_path / "copy" / "state.json"
    folder.download({copy: entries["pipelines/p/state.json"]})
    assert copy.read_text() == "s"


def test_the_same_again_is_no_other_object(folder: Generations, tmp_path: Path) -> None:
    assert put(folder, tmp_path, version="v", data="d") == put(
        folder, tmp_path, version="v", data="d"
    )


def test_a_table_whose_version_is_taken_moves_as_a_whole(
    folder: Generations, tmp_path: Path
) -> None:
    put(folder, tmp_path, version="v", data="d")
    entries = put(folder, tmp_path, version="w", data="d")
    folders = {entry.key.rpartition(".lance/")[0] for entry in entries.values()}
    assert len(folders) == 1
    assert folders.pop().startswith("tables/p-1~")
    later = {VERSION.replace("9", "10"): file(tmp_path / "later", "x")}
    files = {path: file(tmp_path / path[-6:], c) for path, c in zip(entries, "wd", strict=True)}
    more = folder.upload(files | later, entries)
    assert {entry.key.rpartition(".lance/")[0] for entry in more.values()} == {
        entry.key.rpartition(".lance/")[0] for entry in entries.values()
    }


def test_what_a_sweep_may_be_about_to_take_is_not_relied_on(
    folder: Generations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = put(folder, tmp_path, state="s")
    monkeypatch.setattr(generations, "KEPT", timedelta(0))
    new = put(folder, tmp_path, state="s")
    assert new != old
    assert folder.bucket.read(f"w/{new['pipelines/p/state.json'].key}") == b"s"


def test_a_large_file_is_sent_in_parts(
    folder: Generations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedding_pipelines.objects.ONE_PUT_BYTES", 3)
    entries = put(folder, tmp_path, data="many bytes")
    (key,) = (entry.key for entry in entries.values())
    assert folder.bucket.read(f"w/{key}") == b"many bytes"
    assert not folder.bucket.create(f"w/{key}", tmp_path / "data")


def test_a_sweep_without_the_lease_deletes_nothing(
    folder: Generations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generations, "KEPT", timedelta(0))
    entry = generation()
    for _ in range(6):
        folder.publish(entry)
        entry = generation(entry)
    folder.sweep(6, lambda name: True, lambda: False)
    assert folder.bucket.read("w/pipelines/p/generations/0000000001.json")
    folder.sweep(6, lambda name: True, lambda: True)
    assert folder.bucket.read("w/pipelines/p/generations/0000000001.json") is None
    assert isinstance(folder.bucket, Bucket)
