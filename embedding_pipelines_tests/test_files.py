"""A file is replaced as a whole or not at all: whoever is killed, fails or writes beside."""

import json
import os
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_pipelines.errors import StoreError
from embedding_pipelines.files import (
    append_line,
    create_only,
    delete,
    delete_drafts,
    draft_beside,
    is_whole,
    list_files,
    move,
    parse_unsealed,
    read_json,
    read_lines,
    replacing,
    seal,
    write_atomic,
    write_json,
)

TEXT = st.text(max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
NO_SURROGATES = st.text(st.characters(exclude_categories=["Cs"]))

KILLED_IN_THE_MIDDLE = """
import os, signal, sys
from pathlib import Path
from embedding_pipelines.files import replacing

with replacing(Path(sys.argv[1])) as draft, draft.open("wb") as file:
    file.write(b"half of the new")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@given(st.binary() | NO_SURROGATES, st.booleans())
def test_what_is_written_is_read_byte_by_byte(
    tmp_path_factory: pytest.TempPathFactory, data: bytes | str, durable: bool
) -> None:
    path = tmp_path_factory.mktemp("files") / "deep" / "state"
    write_atomic(path, b"old")
    write_atomic(path, data, durable)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert names(path.parent) == ["state"]


@given(st.dictionaries(NO_SURROGATES, JSON, max_size=4))
def test_json_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, value: dict[str, object]
) -> None:
    path = tmp_path_factory.mktemp("files") / "state.json"
    try:
        write_json(path, value)
    except UnicodeEncodeError:  # half a character, which no file in UTF-8 can hold
        assert names(path.parent) == []
    else:
        assert read_json(path) == value


def test_a_writer_that_is_killed_leaves_the_old_file_in_force(tmp_path: Path) -> None:
    path = tmp_path / "state[1].json"  # brackets mean something to a glob
    write_atomic(path, "old")
    killed = subprocess.run([sys.executable, "-c", KILLED_IN_THE_MIDDLE, str(path)])
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    (left,) = (name for name in names(tmp_path) if name != path.name)
    assert (tmp_path / left).read_bytes() == b"half of the new"
    assert list_files(tmp_path, "*") == [path]

    write_atomic(path, "new")
    assert names(tmp_path) == [path.name]
    assert path.read_text() == "new"


def test_drafts_of_the_living_stay_however_old(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with draft_beside(path) as draft:
        draft.write_text("half")
        os.utime(draft, (0, 0))
        write_atomic(path, "another's")
        delete_drafts(tmp_path)
        assert draft.read_text() == "half"
        move(draft, path)
    assert path.read_text() == "half"


def test_a_full_disk_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_atomic(path, "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            write_atomic(path, b"new" * 4_096)
        with pytest.raises(OSError, match="too large"):
            create_only(tmp_path / "other", b"new" * 4_096)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["state"]


def test_a_body_that_fails_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_atomic(path, "old")

    def interrupted() -> None:
        with replacing(path) as draft:
            draft.write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["state"]


def test_writers_side_by_side_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "state"
    contents = [f"{number}" * 20_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: write_atomic(path, content), contents * 10))
    assert path.read_text() in contents
    assert names(tmp_path) == ["state"]


def test_a_draft_gets_the_name_that_its_content_says(tmp_path: Path) -> None:
    with draft_beside(tmp_path / "b00") as draft:
        assert (draft.parent, draft.read_bytes()) == (tmp_path, b"")
        draft.write_text("rows")
        move(draft, tmp_path / "b00-1234.parquet")
    assert names(tmp_path) == ["b00-1234.parquet"]


def test_a_file_is_created_once_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state"
    assert create_only(path, "first")
    assert not create_only(path, b"second")
    assert path.read_text() == "first"
    assert names(path.parent) == ["state"]


def test_of_many_that_create_a_file_one_does(tmp_path: Path) -> None:
    for turn in range(20):
        path = tmp_path / f"{turn}"
        with ThreadPoolExecutor(8) as pool:
            created = list(pool.map(lambda who, path=path: create_only(path, f"{who}"), range(8)))
        assert path.read_text() == f"{created.index(True)}"
        assert created.count(True) == 1
    assert len(names(tmp_path)) == 20


def test_damaged_json_is_named_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    assert read_json(path) is None
    for content in (b'{"half": ', b"\xff\xfe", b"", b"{}", b"[]", b"null", b'{"a": 1}'):
        path.write_bytes(content)
        with pytest.raises(StoreError, match=r"state\.json is damaged: .*makes it anew"):
            read_json(path)


@pytest.mark.parametrize("value", [{}, {"a": {"b": [1, "ü", None]}, "checksum": "mine"}])
def test_every_flipped_bit_of_a_state_and_every_cut_is_noticed(
    tmp_path: Path, value: dict[str, Any]
) -> None:
    path = tmp_path / "state.json"
    write_json(path, value)
    content = path.read_bytes()
    assert json.loads(content).keys() == {*value, "checksum"}
    damages = [
        *(content[:size] for size in range(len(content) - 1)),  # but for the last end of line
        *(
            bytes([*content[:at], content[at] ^ 1 << bit, *content[at + 1 :]])
            for at in range(len(content))
            for bit in range(8)
        ),
    ]
    for damaged in damages:
        path.write_bytes(damaged)
        assert not is_whole(path)
        with pytest.raises(StoreError, match="is damaged"):
            read_json(path)
    path.write_bytes(content)
    assert is_whole(path)


def test_an_object_without_a_checksum_is_told_from_one_whose_checksum_is_damaged() -> None:
    assert parse_unsealed(b'{\n  "live": 2,\n  "releases": []\n}') == {"live": 2, "releases": []}
    for data in (b"", b"{}", b"[1]", b'{"half": ', b"[" * 100_000, b"\xff"):
        assert parse_unsealed(data) is None
    sealed = seal('{\n  "live": 2\n}')
    for at in range(sealed.index(b"checksum") - 3, len(sealed)):
        for bit in range(8):
            assert (
                parse_unsealed(bytes([*sealed[:at], sealed[at] ^ 1 << bit, *sealed[at + 1 :]]))
                is None
            )


def test_lines_that_are_torn_or_damaged_are_counted_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    assert read_lines(path) == ([], 0)
    values = [{"release": 1, "words": "a\u2028b"}, {}, {"release": 3}]
    for value in values:
        append_line(path, value)
    assert read_lines(path) == (values, 0)
    path.write_bytes(path.read_bytes().replace(b": 3", b": 7") + b'{"torn')
    append_line(path, {"release": 4})
    assert read_lines(path) == ([*values[:2], {"release": 4}], 2)


def test_files_are_listed_in_order_without_drafts_and_deleted(tmp_path: Path) -> None:
    assert list_files(tmp_path / "nowhere", "*.json") == []
    for name in ("b.json", "a.json", "c.txt"):
        write_atomic(tmp_path / name, name)
    with draft_beside(tmp_path / "d.json") as draft:
        draft.write_text("draft")
        assert [path.name for path in list_files(tmp_path, "*")] == ["a.json", "b.json", "c.txt"]
    assert [path.name for path in list_files(tmp_path, "*.json")] == ["a.json", "b.json"]
    delete(tmp_path / "a.json")
    delete(tmp_path / "a.json")
    assert names(tmp_path) == ["b.json", "c.txt"]
