"""Archives that somebody made to do harm are refused before anything is written beside them."""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedding_pipelines.errors import BundleError
from embedding_pipelines.serving.archive import (
    DESCRIPTION,
    Entry,
    check_paths,
    entries_below,
    members,
    unpack_rest,
    write_archive,
)


def entry(content: bytes) -> Entry:
    return Entry(size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def archive(path: Path, *infos: tuple[tarfile.TarInfo, bytes], format: int = 0) -> Path:
    """An archive of these members, whatever they are."""
    with tarfile.open(path, "w", format=format) as file:
        for info, content in infos:
            file.addfile(info, io.BytesIO(content))
    return path


def member(name: str, content: bytes = b"x", **attributes: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, content


def read_all(path: Path) -> dict[str, bytes]:
    return {name: content.read() for name, _, content in members(path)}


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """A folder to unpack to; nothing beside it may change."""
    folder = tmp_path / "target"
    folder.mkdir()
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    yield folder
    after = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert {path for path in after - before if path.suffix != ".tar"} <= set(folder.rglob("*"))


def test_a_folder_and_its_archive_have_the_same_members(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / DESCRIPTION).write_bytes(b"{}")
    (folder / "deep" / "er" / ("n" * 90 + ".txt")).write_bytes(b"y" * 1000)
    (folder / "empty").write_bytes(b"")
    names = [name for name in entries_below(folder) if name != DESCRIPTION]
    write_archive(folder, names, tmp_path / "a.tar")
    assert read_all(folder) == read_all(tmp_path / "a.tar")
    assert next(iter(read_all(folder))) == DESCRIPTION
    with tarfile.open(tmp_path / "a.tar") as file:  # what everybody's tar reads
        assert sorted(file.getnames()) == sorted([DESCRIPTION, *names])


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_links_folders_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = archive(tmp_path / "a.tar", member("x", b"", type=kind, linkname="/etc/passwd"))
    with pytest.raises(BundleError, match="no plain file"):
        read_all(path)


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_extended_headers_are_refused_unread(tmp_path: Path, format: int) -> None:
    """Tar libraries hold them in memory whole, however long they say they are."""
    path = archive(tmp_path / "a.tar", member("n" * 5000), format=format)
    with pytest.raises(BundleError, match="no plain file"):
        read_all(path)


def test_compressed_archives_are_none(tmp_path: Path) -> None:
    """So there is nothing that unpacks to more than it is."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w:gz") as file:
        info, content = member("x")
        file.addfile(info, io.BytesIO(content))
    with pytest.raises(BundleError, match="archive"):
        read_all(path)


@pytest.mark.parametrize("cut", [100, 512, 600, 1024])
def test_what_ends_too_early_is_refused(tmp_path: Path, cut: int) -> None:
    path = archive(tmp_path / "a.tar", member("x", b"y" * 1000))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(BundleError, match="ends"):
        read_all(path)


def test_an_absurd_size_takes_no_room(tmp_path: Path) -> None:
    """A header may say 8 EiB: what is read is what is there."""
    info, _ = member("x", b"")
    info.size = 1 << 62
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"y" * 512)
    opened = members(path)
    _, _, content = next(opened)
    assert content.read(512) == b"y" * 512
    with pytest.raises(BundleError, match="ends in the middle"):
        content.read(512)


@pytest.mark.parametrize(
    "name",
    [
        *("../x", "a/../../x", "/etc/passwd", "a//b", "./x", "a/./b", "a\\..\\b", "C:x", "a\0b"),
        *("a\nb", "a/", " a", "a ", "n" * 241, "", "a/b/../c", "...", "a*b", DESCRIPTION),
    ],
)
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(BundleError, match="names a file"):
        check_paths({name: entry(b"")}, lambda _: True)


def test_names_that_stand_in_each_other_s_way_are_refused() -> None:
    with pytest.raises(BundleError, match="names a file"):
        check_paths({"a": entry(b""), "a/b": entry(b"")}, lambda _: True)
    with pytest.raises(BundleError, match="twice"):
        check_paths({"a": entry(b""), "A": entry(b"")}, lambda _: True)
    with pytest.raises(BundleError, match="names a file"):
        check_paths({"a": entry(b"")}, lambda _: False)


def test_only_what_is_named_is_written(tmp_path: Path, target: Path) -> None:
    path = archive(tmp_path / "a.tar", member("a"), member("b"))
    with pytest.raises(BundleError, match="not as its description says"):
        unpack_rest(members(path), {"a": entry(b"x")}, target)
    assert not (target / "b").exists()


def test_a_file_that_comes_twice_is_refused(tmp_path: Path, target: Path) -> None:
    path = archive(tmp_path / "a.tar", member("a"), member("a"))
    with pytest.raises(BundleError, match="not as its description says"):
        unpack_rest(members(path), {"a": entry(b"x")}, target)


def test_sizes_digests_and_missing_files(tmp_path: Path, target: Path) -> None:
    path = archive(tmp_path / "a.tar", member("a"))
    with pytest.raises(BundleError, match="not as its description says"):
        unpack_rest(members(path), {"a": entry(b"xx")}, target)
    with pytest.raises(BundleError, match="checksum"):
        unpack_rest(members(path), {"a": entry(b"y")}, target)
    (target / "a").unlink()
    with pytest.raises(BundleError, match="lacks 'b'"):
        unpack_rest(members(path), {"a": entry(b"x"), "b": entry(b"x")}, target)


def test_more_than_the_disk_holds_is_refused_before_it_is_written(
    tmp_path: Path, target: Path
) -> None:
    huge = Entry(size_bytes=1 << 49, sha256="0" * 64)
    with pytest.raises(BundleError, match="Free some space"):
        unpack_rest(iter([]), {"a": huge}, target)
    assert not list(target.iterdir())


def test_a_folder_with_links_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "x").symlink_to("/etc/passwd")
    with pytest.raises(BundleError, match="neither a file nor a folder"):
        read_all(folder)
    (folder / "x").unlink()
    (folder / "y").symlink_to("/etc", target_is_directory=True)
    with pytest.raises(BundleError, match="neither a file nor a folder"):
        read_all(folder)
