"""`lancedb`: the contract, its versions, its compaction, and searches from wherever they come."""

import asyncio
import errno
import os
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.errors import StoreError
from embedding_pipelines.files import read_json
from embedding_pipelines.stores import _checksums
from embedding_pipelines.stores._lance import call
from embedding_pipelines.stores._lance_index import MAX_SMALL_FILES, MAX_UPDATES, statistics
from embedding_pipelines.stores.lancedb import Lancedb, LanceTable
from embedding_pipelines_tests.compression.contract import clustered
from embedding_pipelines_tests.decoded import read_data_file
from embedding_pipelines_tests.stores.contract import SCHEMA, batch, check_store, vectors_of
from embedding_pipelines_tests.stores.tables import DIMENSIONS, add, build


def test_lancedb_keeps_the_contract(tmp_path: Path) -> None:
    check_store(Lancedb(), tmp_path)


@pytest.mark.parametrize("has_key", [True, False])
def test_two_writers_who_merge_one_new_id_at_once_store_it_once_because_of_the_key(
    tmp_path: Path, has_key: bool
) -> None:
    if has_key:
        LanceTable(tmp_path, "p-1", Lancedb()).apply(SCHEMA, [], [batch(["old"])])
    else:  # as tables were made before: it shows that the key is what helps
        lancedb.connect(tmp_path).create_table("p-1", [batch(["old"])], SCHEMA)
    barrier = threading.Barrier(2)

    def merge(name: str) -> None:
        table = lancedb.connect(tmp_path).open_table("p-1")
        barrier.wait(60)
        merge = table.merge_insert("chunk_id").when_matched_update_all()
        merge.when_not_matched_insert_all().execute(pa.Table.from_batches([batch([name])]))

    names = [f"new{number}" for number in range(6)]
    with ThreadPoolExecutor(2) as writers:
        for name in names:
            list(writers.map(merge, [name, name]))
    counts = Counter(lancedb.connect(tmp_path).open_table("p-1").to_arrow()["chunk_id"].to_pylist())
    assert counts.keys() == {"old", *names}
    # Without the key nearly each is there twice; one writer may be too quick for the other.
    assert max(counts.values()) == (1 if has_key else 2)


def test_small_updates_wait_for_their_compaction_and_it_removes_what_no_release_keeps(
    tmp_path: Path,
) -> None:
    table = LanceTable(tmp_path, "p-1", Lancedb(index_rows=256))
    table.apply(SCHEMA, [], [batch([f"row{n}" for n in range(2_000)])])
    table.index("cosine", 0)
    whole, first = table.size_bytes(), table.version
    tags: dict[str, int] = {}
    for n in range(MAX_SMALL_FILES + 1):
        grown = table.size_bytes()
        table.apply(SCHEMA, [f"row{n}"], [batch([f"new{n}"])])
        table.index("cosine", 2_000)
        version = table.version
        assert version is not None
        tags.pop(f"release-{n - 2}", None)
        tags[f"release-{n}"] = version
        table.tag(tags)
        if n < MAX_SMALL_FILES - 1:
            assert table.size_bytes() - grown < 0.1 * whole
    versions = {entry["version"] for entry in call(table._open().list_versions)}
    assert first not in versions
    assert set(tags.values()) <= versions
    assert len(versions) <= 3  # the newest update did not know yet that the oldest tag would go
    assert statistics(table._open())["fragment_stats"]["num_fragments"] < 4
    assert all(table.rows(version) == 2_000 for version in tags.values())


def test_a_table_of_dead_rows_is_written_anew(tmp_path: Path) -> None:
    table = LanceTable(tmp_path, "p-1", Lancedb())
    table.apply(SCHEMA, [], [batch([f"row{n}" for n in range(1_000)])])
    table.apply(SCHEMA, [f"row{n}" for n in range(500)], [])
    table.index("cosine", 0)
    assert statistics(table._open())["fragment_stats"]["lengths"]["max"] == 500


def test_the_record_of_checksums_is_read_once_to_compare_a_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = LanceTable(tmp_path, "p-1", Lancedb())
    table.apply(SCHEMA, [], [batch(["a", "b"])])
    table.index("cosine", 0)
    version, reads = table.version, list[Path]()
    assert version is not None

    def read(path: Path) -> dict[str, object] | None:
        reads.append(path)
        return read_json(path)

    monkeypatch.setattr(_checksums, "read_json", read)
    assert table.damage(version) is None
    assert len(reads) == 1
    reads.clear()
    list(LanceTable(tmp_path, "p-1", Lancedb()).scan(["chunk_id"], version=version))
    assert len(reads) == 1


def test_the_version_is_the_one_of_lancedb(tmp_path: Path) -> None:
    """It is read from file names: compared after every kind of change that a table here goes
    through."""
    table = LanceTable(tmp_path, "p-1", Lancedb(index_rows=256))

    def agree() -> int:
        version = call(table._open().version)
        other = LanceTable(tmp_path, "p-1", Lancedb(index_rows=256))
        assert table.version == other.version == version
        return version

    table.apply(SCHEMA, [], [])
    assert agree() == 2  # the table, then its key
    names = [f"row{n}" for n in range(300)]
    table.apply(SCHEMA, [], [batch(names)])
    table.apply(SCHEMA, ["row1", "row2"], [])
    table.apply(SCHEMA, ["row3"], [batch(["row1"])])
    before = agree()
    table.index("cosine", 0)
    first = agree()
    assert first > before
    table.tag({"release-1": first})
    assert agree() == first
    for n in range(12):  # into numbers of two digits, and small files to fold into one
        table.apply(SCHEMA, [], [batch([f"new{n}"])])
        agree()
    table.index("cosine", 300)
    second = agree()
    assert second > 15
    table.tag({"release-2": second})
    agree()
    assert table.rows(second) == 310
    handle = table._open()
    call(handle.restore, second)
    assert agree() == second + 1


def test_a_table_is_changed_and_searched_without_the_package_around_the_compiled_module(
    tmp_path: Path,
) -> None:
    LanceTable(tmp_path, "p-1", Lancedb(index_rows=256)).apply(SCHEMA, [], [batch(["a", "b"])])
    script = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "from embedding_pipelines.stores.lancedb import Lancedb, LanceTable\n"
        "table = LanceTable(Path(sys.argv[1]), 'p-1', Lancedb())\n"
        "table.apply(table.schema(), ['a'], [])\n"
        "table.index('cosine', 0)\n"
        "table.tag({'release-1': table.version})\n"
        "query = np.ones(table.schema().field('vector').type.list_size, np.float32)\n"
        "print(table.search(query, 5, 'cosine', None, table.version)['chunk_id'].to_pylist())\n"
        "print(sorted(name for name in sys.modules if name.startswith(('lance', 'pandas'))))\n"
        "import lancedb; print(lancedb.connect(sys.argv[1]).open_table('p-1').count_rows())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True
    )
    hits, loaded, rows = done.stdout.splitlines()
    assert (hits, rows) == ("['b']", "1")
    assert loaded == "['lancedb._lancedb', 'lancedb.background_loop']"


def test_manifests_of_another_naming_are_left_to_lancedb(tmp_path: Path) -> None:
    options = {"new_table_enable_v2_manifest_paths": "false"}
    table = lancedb.connect(tmp_path).create_table("p-1", schema=SCHEMA, storage_options=options)
    table.add(pa.Table.from_batches([batch(["a"])]))
    assert {file.name for file in (tmp_path / "p-1.lance" / "_versions").glob("*.manifest")} == {
        "1.manifest",
        "2.manifest",
    }
    assert LanceTable(tmp_path, "p-1", Lancedb(index_rows=256)).version == 2


@pytest.mark.parametrize("left", [0, 100, -20], ids=["nothing", "zeros", "most"])
def test_a_torn_newest_manifest_is_set_aside_and_the_version_before_stands(
    tmp_path: Path, left: int
) -> None:
    """As a power cut leaves it: Lance itself opens no version of such a table."""
    table = LanceTable(tmp_path, "p-1", Lancedb(index_rows=256))
    table.apply(SCHEMA, [], [batch(["a"])])
    first = table.version
    assert first is not None
    table.tag({"release-1": first})
    table.apply(SCHEMA, [], [batch(["b"])])
    newest = min((tmp_path / "p-1.lance" / "_versions").glob("*.manifest"))
    newest.write_bytes(b"\0" * left if left == 100 else newest.read_bytes()[:left])
    reader = LanceTable(tmp_path, "p-1", Lancedb(index_rows=256))
    assert reader.search(vectors_of(["a"])[0], 1, "cosine", None, first).num_rows == 1
    assert (reader.version, reader.rows(), reader.rows(first)) == (first, 1, 1)
    reader.apply(SCHEMA, [], [batch(["c"])])
    reader.index("cosine", 0)
    assert reader.rows() == 2
    assert not list((tmp_path / "p-1.lance" / "_versions").glob("*.torn"))


def test_versions_that_were_withdrawn_leave_nothing(tmp_path: Path) -> None:
    table = LanceTable(tmp_path, "p-1", Lancedb(index_rows=256))
    table.apply(SCHEMA, [], [batch(["a"])])
    first = table.version
    assert first is not None
    table.apply(SCHEMA, ["a"], [batch(["b", "c"])])
    assert not table.lacks(first)
    table.withdraw(first)
    assert (table.version, table.rows(), table.lacks(first + 1)) == (first, 1, True)
    table.apply(SCHEMA, [], [batch(["d"])])
    names = [name for part in table.scan(["chunk_id"]) for name in part["chunk_id"].to_pylist()]
    assert sorted(names) == ["a", "d"]
    table.withdraw(None)
    assert (table.version, table.lacks(first)) == (None, True)
    assert not list(tmp_path.iterdir())


def test_what_killed_writers_left_goes_and_nothing_goes_beside_a_damaged_manifest(
    tmp_path: Path,
) -> None:
    table, folder = LanceTable(tmp_path, "p-1", Lancedb(index_rows=256)), tmp_path / "p-1.lance"
    unnamed = folder / "_transactions" / "0-unnamed.txn"  # killed before there was a version
    unnamed.parent.mkdir(parents=True)
    unnamed.write_bytes(b"")
    table.apply(SCHEMA, [], [batch(["a", "b", "c"])])
    assert not unnamed.exists()
    table.apply(SCHEMA, ["a"], [batch(["d"])])
    table.index("cosine", 0)
    version, files = table.version, {path for path in folder.rglob("*") if path.is_file()}
    assert version is not None
    drafts = ("data/.tmpX", "_deletions/.tmpX", "_versions/.tmpX", "_versions/9.manifest#1")
    for name in (*drafts, "data/unnamed.lance", "_transactions/9-x.txn"):
        (folder / name).write_bytes(b"half of something")
    table.apply(SCHEMA, ["c"], [])  # killed before it says that it has ended
    assert {path for path in folder.rglob("*") if path.is_file()} > files
    assert not list(folder.rglob("*unnamed*"))
    table.withdraw(version)
    left = {path for path in folder.rglob("*") if path.is_file()}
    assert left == files - {folder / "_versions" / "latest_version_hint.json"}
    assert sorted(
        row for part in table.scan(["chunk_id"]) for row in part["chunk_id"].to_pylist()
    ) == [
        "b",
        "c",
        "d",
    ]

    table.tag({"release-1": version})
    (folder / "_refs" / "tags" / "release-2.json.tmp.5a0ac8b37e1f").write_bytes(b"{")
    table.tag({"release-1": version})
    assert [path.name for path in (folder / "_refs" / "tags").iterdir()] == ["release-1.json"]

    (folder / "data" / "unnamed.lance").write_bytes(b"of a manifest that is damaged, perhaps")
    oldest = max((folder / "_versions").glob("*.manifest"))
    oldest.write_bytes(oldest.read_bytes().replace(b"LANC", b"LAND"))
    table.withdraw(version)
    assert (folder / "data" / "unnamed.lance").exists()


def test_a_draft_that_lance_could_not_delete_goes_before_the_update_ends(tmp_path: Path) -> None:
    table = LanceTable(tmp_path, "p-1", Lancedb(index_rows=256))
    table.apply(SCHEMA, [], [batch(["a"])])
    draft = tmp_path / "p-1.lance" / "_versions" / "9.manifest#1"
    draft.write_bytes(b"whole, and under its own name as well")
    table.index("cosine", 0)
    assert not draft.exists()


def test_versions_go_where_the_same_rows_change_for_ever(tmp_path: Path) -> None:
    table = LanceTable(tmp_path, "p-1", Lancedb(index_rows=256))
    table.apply(SCHEMA, [], [batch([f"row{n}" for n in range(50)])])
    for _ in range(MAX_UPDATES):
        table.apply(SCHEMA, ["row0"], [batch(["row0"])])
        table.index("cosine", 0)
        version = table.version
        assert version is not None
        assert [entry["version"] for entry in call(table._open().list_versions)] == [version]
    assert statistics(table._open())["fragment_stats"]["num_small_fragments"] <= MAX_SMALL_FILES


def test_a_deleted_row_leaves_its_file_though_nothing_is_ever_added(tmp_path: Path) -> None:
    """Lance by itself rewrites no file for less than a tenth of dead rows."""
    table = LanceTable(tmp_path, "p-1", Lancedb(index_rows=256))
    table.apply(SCHEMA, [], [batch([f"row{n}" for n in range(400)])])
    table.index("cosine", 0)
    for n in range(MAX_UPDATES):
        assert "row0" in rows_on_disk(table)
        table.apply(SCHEMA, [f"row{n}"], [])
        table.index("cosine", 400)
    assert len(rows_on_disk(table)) == table.rows() == 400 - MAX_UPDATES


def rows_on_disk(table: LanceTable) -> list[str]:
    """The ids of all rows in all files, whatever versions say of them."""
    files = (table.folder_of_files / "data").iterdir()
    batches = (batch for file in files for batch in read_data_file(file))
    return [name for rows in batches for name in rows["chunk_id"].to_pylist()]


ODD_NAMES = ["josé", "a b", "a#b", "a%20b", "a?b", "日本", "a%b", "~x", "[x]", "{a}", "a\\b", "é*"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_table_lies_below_any_path_and_in_no_other(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name / "tables"
    store = Lancedb(index_rows=256)
    table = store.table(folder, "p-1")
    table.apply(SCHEMA, [], [batch([f"row{n}" for n in range(300)])])
    table.index("cosine", 0)
    version = table.version
    assert version is not None
    table.tag({"release-1": version})
    assert table.search(vectors_of(["row7"])[0], 1, "cosine", None, version).num_rows == 1
    assert store.names(folder) == ["p-1"]
    assert [path.name for path in tmp_path.iterdir()] == [name]
    store.drop(folder, "p-1")
    assert store.names(folder) == []
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a\nb", "a\x7fb", "b\udcff"])
def test_a_path_that_lancedb_cannot_open_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match=r"control character, or bytes.*another path"):
        Lancedb().table(tmp_path / name, "p-1").apply(SCHEMA, [], [batch(["a"])])


def test_what_cannot_be_read_is_not_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = LanceTable(tmp_path, "p-1", Lancedb(index_rows=256))
    table.apply(SCHEMA, [], [batch(["a"])])

    def fail(folder: Path) -> list[str]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(folder))

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", fail)
        for question in (
            lambda: table.version,
            lambda: table.lacks(9),
            lambda: Lancedb().names(tmp_path),
        ):
            with pytest.raises(OSError, match="Too many open files"):
                question()
    (tmp_path / "disk").mkdir()
    os.rename(tmp_path / "p-1.lance", tmp_path / "disk" / "p-1.lance")
    (tmp_path / "p-1.lance").symlink_to(tmp_path / "unmounted" / "p-1.lance")
    with pytest.raises(FileNotFoundError):  # the link is there: its disk may come back
        table.lacks(1)
    (tmp_path / "p-1.lance").unlink()
    assert table.lacks(1)


def test_a_filter_finds_its_rows_wherever_they_lie(tmp_path: Path) -> None:
    """They may all be in partitions far from the query, as when it is about something else than the
    filter."""
    vectors = np.random.default_rng(0).normal(0, 0.02, (20_000, 16)).astype(np.float32)
    vectors[::2, 0] += 1
    vectors[1::2, 0] -= 1  # two opposite parts; the filters pass only rows of the second
    codec = CodecChain([], 16)
    table = build(tmp_path, codec, nprobes=1)
    add(table, codec, vectors, 0, [])
    table.index("cosine", 0)
    version = table.version
    assert version is not None
    assert len(table.search(vectors[0], 2_000, "cosine", "cat = 'c7'", version)) == 1_000
    assert len(table.search(vectors[0], 10, "cosine", "document_id = '27'", version)) == 1


def test_searches_work_inside_an_event_loop_and_in_threads(tmp_path: Path) -> None:
    table = LanceTable(tmp_path, "p-1", Lancedb(index_rows=256))
    table.apply(SCHEMA, [], [batch(["a", "b", "c"])])
    version = table.version
    assert version is not None

    def nearest(name: str) -> str:
        rows = table.search(vectors_of([name])[0], 1, "cosine", None, version)
        return str(rows["chunk_id"][0].as_py())

    async def within() -> str:
        return nearest("b")

    assert asyncio.run(within()) == "b"
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(nearest, "abcabc")) == list("abcabc")


def test_a_table_of_many_rows_is_scanned_whole(tmp_path: Path) -> None:
    codec = CodecChain([], DIMENSIONS)
    table = build(tmp_path, codec, 100_000)
    add(table, codec, clustered(20_000, DIMENSIONS), 0, [])
    assert sum(part.num_rows for part in table.scan(["chunk_id"])) == 20_000
    assert sum(part.num_rows for part in table.scan(["chunk_id"], "b00")) == 20_000
    before, gone = table.version, [f"{number}" for number in range(0, 20_000, 3)]
    add(table, codec, clustered(5, DIMENSIONS), 50_000, gone)
    names = [name for part in table.scan(["chunk_id"]) for name in part["chunk_id"].to_pylist()]
    rest = [f"{number}" for number in range(20_000) if number % 3]
    assert names == [*rest, *(f"{number}" for number in range(50_000, 50_005))]
    assert sum(part.num_rows for part in table.scan(["chunk_id"], version=before)) == 20_000
