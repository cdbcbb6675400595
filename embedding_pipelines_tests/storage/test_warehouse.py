"""Shards and manifests: whole or not there, equal bytes for equal rows, fixed partitions."""

import hashlib
import json
import mmap
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from embedding_pipelines.errors import ConfigError, StoreError
from embedding_pipelines.files import read_json, write_json
from embedding_pipelines.storage import warehouse
from embedding_pipelines.storage.warehouse import (
    ROW_GROUP_ROWS,
    Shards,
    ShardWriters,
    Warehouse,
    file_digest,
    write_table,
)

SCHEMA = pa.schema([("id", pa.string()), ("n", pa.int64())], metadata={b"key": b"value"})


def batch(first: int, last: int) -> pa.RecordBatch:
    return pa.record_batch(
        [[f"id{n}" for n in range(first, last)], list(range(first, last))], schema=SCHEMA
    )


def numbers(shards: Shards, partition: str = "b00") -> list[int]:
    return [n for part in shards.read(partition) for n in part["n"].to_pylist()]


def test_what_was_written_is_read_in_order_with_its_schema(tmp_path: Path) -> None:
    shards = Shards(tmp_path)
    statistics: dict[str, int] = {}

    def batches():
        yield batch(0, 3)
        yield batch(3, 3)
        yield batch(3, 10_000)
        statistics["seen"] = 10_000

    manifest = shards.write("b00", SCHEMA, batches(), "inputs", "configuration", statistics)
    assert (manifest.rows, manifest.statistics) == (10_000, {"seen": 10_000})
    assert numbers(shards) == list(range(10_000))
    assert shards.schema("b00").equals(SCHEMA, check_metadata=True)
    assert shards.read_columns("b00", ["n"]).column_names == ["n"]
    assert shards.manifest("b00") == manifest
    assert shards.current("b00", "inputs", "configuration")
    assert not shards.current("b00", "inputs", "others")
    assert not shards.current("b00", "others", "configuration")


def test_a_shard_is_read_in_the_memory_of_a_few_row_groups(tmp_path: Path) -> None:
    shards, group_bytes = Shards(tmp_path), 64 * 4 * ROW_GROUP_ROWS
    schema = pa.schema([("vector", pa.list_(pa.float32(), 64))])
    numbers = np.random.default_rng(0).standard_normal(64 * ROW_GROUP_ROWS, np.float32)
    group = pa.record_batch([pa.FixedSizeListArray.from_arrays(numbers, 64)], schema=schema)
    shards.write("b00", schema, [group] * 12, "", "", {})
    before, most = pa.total_allocated_bytes(), 0
    for part in shards.read("b00"):
        most = max(most, pa.total_allocated_bytes() - before)
        assert part.num_rows == ROW_GROUP_ROWS
    assert group_bytes < most < 5 * group_bytes


def test_a_digest_is_that_of_all_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warehouse, "DIGESTED_BYTES", size := mmap.ALLOCATIONGRANULARITY)
    for length in (0, 1, size, 2 * size + 1):
        (tmp_path / "file").write_bytes(content := os.urandom(length))
        expected = hashlib.blake2b(content, digest_size=16).hexdigest()
        assert file_digest(tmp_path / "file") == expected


def test_a_partition_that_was_never_written_is_empty(tmp_path: Path) -> None:
    shards = Shards(tmp_path / "nothing")
    assert shards.manifest("b00") is None
    assert shards.schema("b00") is None
    assert shards.read_columns("b00", ["n"]) is None
    assert numbers(shards) == []
    assert not shards.current("b00", "", "")


@pytest.mark.parametrize("left", [0.0, 0.5])
def test_a_shard_that_a_power_cut_left_short_was_never_made(tmp_path: Path, left: float) -> None:
    shards = Shards(tmp_path)
    manifest = shards.write("b00", SCHEMA, [batch(0, 100)], "inputs", "configuration", {})
    os.truncate(tmp_path / manifest.shard, int(manifest.size_bytes * left))
    assert shards.manifest("b00") is None
    assert shards.current("b00", "inputs", "configuration") is None
    assert numbers(shards) == []
    shards.write("b00", SCHEMA, [batch(0, 100)], "inputs", "configuration", {})
    assert numbers(shards) == list(range(100))


def test_a_manifest_is_read_once_until_another_process_replaces_it(tmp_path: Path) -> None:
    ours, others = Shards(tmp_path), Shards(tmp_path)
    first = others.write("b00", SCHEMA, [batch(0, 3)], "in", "as", {})
    assert ours.manifest("b00") == first
    assert ours.manifest("b00") is ours.manifest("b00")
    second = others.write("b00", SCHEMA, [batch(3, 6)], "in", "as", {})
    assert ours.manifest("b00") == second != first
    (tmp_path / "b00.json").unlink()
    assert ours.manifest("b00") is None


def test_an_empty_partition_is_written_with_its_schema(tmp_path: Path) -> None:
    shards = Shards(tmp_path)
    assert shards.write("b00", SCHEMA, [], "", "", {}).rows == 0
    assert shards.schema("b00").equals(SCHEMA)
    assert numbers(shards) == []


def test_equal_rows_make_equal_bytes_however_they_were_cut(tmp_path: Path) -> None:
    rows = ROW_GROUP_ROWS * 2 + 100
    whole = Shards(tmp_path / "a").write("b00", SCHEMA, [batch(0, rows)], "", "", {})
    cuts = [0, 1, 17, ROW_GROUP_ROWS - 1, ROW_GROUP_ROWS + 1, ROW_GROUP_ROWS * 2, rows]
    parts = [batch(first, last) for first, last in pairwise(cuts)]
    assert Shards(tmp_path / "b").write("b00", SCHEMA, parts, "", "", {}).digest == whole.digest
    fewer = Shards(tmp_path / "c").write("b00", SCHEMA, [batch(0, rows - 1)], "", "", {})
    assert fewer.digest != whole.digest
    assert file_digest(tmp_path / "a" / whole.shard) == whole.digest


def test_a_failed_write_leaves_the_partition_as_it_was_and_no_draft(tmp_path: Path) -> None:
    shards = Shards(tmp_path)
    manifest = shards.write("b00", SCHEMA, [batch(0, 5)], "", "", {})

    def fails():
        yield batch(5, 10)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"):
        shards.write("b00", SCHEMA, fails(), "", "", {})
    assert shards.manifest("b00") == manifest
    assert numbers(shards) == list(range(5))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["b00.json", manifest.shard])


def test_old_shards_go_and_a_reader_that_has_begun_ends_in_peace(tmp_path: Path) -> None:
    shards = Shards(tmp_path)
    shards.write("b00", SCHEMA, [batch(0, 9_000)], "", "", {})
    shards.write("b01", SCHEMA, [batch(0, 1)], "", "", {})
    (tmp_path / "b00-0000.parquet").write_bytes(b"left by a killed process")
    reader = shards.read("b00")
    batches = [next(reader)]
    manifest = shards.write("b00", SCHEMA, [batch(0, 3)], "", "", {})
    batches += list(reader)
    assert sum(part.num_rows for part in batches) == 9_000
    assert [path.name for path in tmp_path.glob("b00-*")] == [manifest.shard]
    assert numbers(shards, "b01") == [0]


def test_shards_that_a_killed_process_left_go(tmp_path: Path) -> None:
    folder = Warehouse(tmp_path).pipeline("p")
    shards = folder.chunks
    for partition in ("b00", "b01"):
        shards.write(partition, SCHEMA, [batch(0, 3)], "", "", {})
    named = shards.folder / shards.required("b00").shard
    (shards.folder / "b01.json").unlink()  # it was killed before it wrote this
    for name in ("b00-1234.parquet", "b00-5678.parquet.damaged"):
        (shards.folder / name).write_bytes(named.read_bytes())
    folder.delete_leftovers(".reading-")
    (other,) = shards.folder.glob("b01-*.parquet")
    assert sorted(shards.folder.iterdir()) == [named, shards.folder / "b00.json", other]


def test_a_partition_can_be_rewritten_from_itself(tmp_path: Path) -> None:
    shards = Shards(tmp_path)
    shards.write("b00", SCHEMA, [batch(0, 9_000)], "", "", {})
    shards.write("b00", SCHEMA, shards.read("b00"), "", "", {})
    assert numbers(shards) == list(range(9_000))


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "state.json"
    assert read_json(path) is None
    write_json(path, {"text": "Ünïcødé 😀"})
    with pytest.raises(TypeError):
        write_json(path, {"text": object()})
    assert read_json(path) == {"text": "Ünïcødé 😀"}
    assert [entry.name for entry in path.parent.iterdir()] == ["state.json"]
    assert json.loads(path.read_text(encoding="utf-8"))


def test_a_table_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "rejected.parquet"
    assert write_table(path, SCHEMA, [batch(0, 7)]) == 7
    assert write_table(path, SCHEMA, []) == 0


def test_the_number_of_partitions_is_fixed_at_the_first_run(tmp_path: Path) -> None:
    folder = Warehouse(tmp_path).pipeline("p")
    folder.fix_partitions(16)
    folder.fix_partitions(16)
    with pytest.raises(
        ConfigError, match=r"'p' was made with 16 partitions, its file now says 8.*set it back"
    ):
        folder.fix_partitions(8)


def batches_of(count: int) -> list[pa.RecordBatch]:
    return [pa.RecordBatch.from_pydict({"number": [at, at]}) for at in range(count)]


def test_partitions_that_threads_write_are_those_that_a_caller_writes(tmp_path: Path) -> None:
    here, there = Shards(tmp_path / "here"), Shards(tmp_path / "there")
    batches = batches_of(9)
    with ShardWriters(there) as writers:
        drafts = {}
        for name in ("b00", "b01", "b02"):
            statistics: dict[str, int] = {}
            draft = writers.begin(name, batches[0].schema, "in", "how", statistics)
            for batch in batches:
                draft.add(batch)
            statistics["rows"] = 18  # until the draft ends
            draft.add(None)
            drafts[name] = draft
        for name, draft in drafts.items():
            arguments = (batches[0].schema, batches, "in", "how", {"rows": 18})
            assert draft.manifest.result() == here.write(name, *arguments)
            assert there.manifest(name) == here.manifest(name)


def test_a_partition_whose_rows_never_end_stays_as_it_was(tmp_path: Path) -> None:
    shards, batches = Shards(tmp_path), batches_of(2)
    before = shards.write("b00", batches[0].schema, batches[:1], "in", "how", {})
    with ShardWriters(shards) as writers:
        whole = writers.begin("b01", batches[0].schema, "in", "how", {})
        whole.add(None)
        draft = writers.begin("b00", batches[0].schema, "in", "how", {})
        draft.add(batches[1])
    with pytest.raises(StoreError, match="never ended"):
        draft.manifest.result()
    assert shards.manifest("b00") == before
    assert shards.manifest("b01") == whole.manifest.result()
    assert {path.name for path in tmp_path.iterdir() if path.suffix == ".parquet"} == {
        before.shard,
        whole.manifest.result().shard,
    }


def test_what_writing_fails_with_is_raised_where_rows_are_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise OSError("no space left on device")

    monkeypatch.setattr(warehouse, "_write_parquet", fail)
    with ShardWriters(Shards(tmp_path)) as writers:
        draft = writers.begin("b00", batches_of(1)[0].schema, "in", "how", {})
        draft.manifest.exception()
        with pytest.raises(OSError, match="no space left"):
            draft.add(batches_of(1)[0])
