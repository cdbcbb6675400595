"""Objects are read from whole copies, some of them ahead, none of which stays."""

import bz2
import gzip
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding_pipelines.errors import SourceError
from embedding_pipelines.sources import inputs
from embedding_pipelines.sources.base import ReadLog, Source, fetched
from embedding_pipelines_tests.buckets import Exchange, Proxy, TestBucket
from embedding_pipelines_tests.contracts_sources import make

LINES = "".join(f'{{"text": "text {number}"}}\n' for number in range(100)).encode()


def texts(source: Source, home: Path) -> list[str]:
    found: list[str] = []
    with fetched(source.files(home), home) as files:
        for file in files:
            for batch in source.read(file, ReadLog(lambda rejection: pytest.fail(str(rejection)))):
                found += batch["text"].to_pylist()
                assert set(batch["source_file"].to_pylist()) == {file.name}
    assert list(home.iterdir()) == []
    return found


def parquet(values: list[str]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": values}), file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "key", "content"),
    [
        ("csv", "a.csv", b"text\none\ntwo\n"),
        ("csv", "a b.tsv.gz", gzip.compress(b"text\none\ntwo\n")),
        ("json", "a.json", b'[{"text": "one"}, {"text": "two"}]'),
        ("jsonl", "a.jsonl.bz2", bz2.compress(b'{"text": "one"}\n{"text": "two"}\n')),
        ("parquet", "a.parquet", parquet(["one", "two"])),
    ],
    ids=["csv", "tsv.gz", "json", "jsonl.bz2", "parquet"],
)
def test_every_kind_reads_objects(
    bucket: TestBucket, tmp_path: Path, kind: str, key: str, content: bytes
) -> None:
    bucket.put(f"in/{key}", content)
    assert texts(make(kind, f"{bucket.uri}/in/*"), tmp_path) == ["one", "two"]


def test_what_is_wrong_in_an_object_is_said_of_its_uri(bucket: TestBucket, tmp_path: Path) -> None:
    bucket.put("a.jsonl.gz", gzip.compress(LINES)[:-20])
    with pytest.raises(SourceError, match=r"^s3://\w+/a\.jsonl\.gz: the gzip archive is cut short"):
        texts(make("jsonl", bucket.uri), tmp_path)
    bucket.put("b.jsonl", b"")
    bucket.delete("a.jsonl.gz")
    assert texts(make("jsonl", bucket.uri), tmp_path) == []


def test_copies_are_made_ahead_and_no_more_than_a_bound(
    bucket: TestBucket, tmp_path: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        bucket.put(f"{number:02}.jsonl", LINES)
    bucket.put("10.jsonl", LINES * 20)  # larger than the bound
    monkeypatch.setattr(inputs, "AHEAD_BYTES", 4 * len(LINES))
    (tmp_path / "local.jsonl").write_bytes(LINES)
    source = make("jsonl", ["local.jsonl", bucket.uri])
    files, sizes = source.files(tmp_path), []
    assert [file.name for file in files[:2]] == ["local.jsonl", f"{bucket.uri}/00.jsonl"]
    with fetched(files, tmp_path / "copies") as local:
        for file, listed in zip(local, files, strict=True):
            assert (file.name, file.stamp) == (listed.name, listed.stamp)
            assert file.path.stat().st_size == file.size_bytes
            sizes.append(sum(path.stat().st_size for path in (tmp_path / "copies").rglob("*/*")))
    assert (tmp_path / "local.jsonl").exists()
    assert max(sizes[:9] + sizes[12:]) <= 4 * len(LINES)
    assert max(sizes) <= 20 * len(LINES)
    assert list((tmp_path / "copies").iterdir()) == []
    assert sum(path.startswith("GET") and ".jsonl" in path for path in proxy.paths) == 20


def test_an_object_that_is_replaced_is_read_as_it_is_now_with_its_stamp(
    bucket: TestBucket, tmp_path: Path
) -> None:
    bucket.put("a.jsonl", b'{"text": "old"}\n')
    source = make("jsonl", bucket.uri)
    listed = source.files(tmp_path)
    bucket.put("a.jsonl", b'{"text": "newer"}\n')
    with fetched(listed, tmp_path) as files:
        (file,) = files
    assert file.stamp != listed[0].stamp
    assert file.stamp == source.files(tmp_path)[0].stamp
    bucket.delete("a.jsonl")
    with (
        pytest.raises(SourceError, match=r"/a\.jsonl: the object is gone\. Put it back, or run ag"),
        fetched(listed, tmp_path) as files,
    ):
        next(files)


def test_whoever_ends_early_leaves_nothing(
    bucket: TestBucket, tmp_path: Path, proxy: Proxy
) -> None:
    for number in range(30):
        bucket.put(f"{number:02}.jsonl", LINES)
    listed = make("jsonl", bucket.uri).files(tmp_path)
    with fetched(listed, tmp_path) as files:
        next(files)
    assert list(tmp_path.iterdir()) == []
    assert sum("jsonl" in path for path in proxy.paths) <= inputs.DOWNLOADS

    def deny(exchange: Exchange) -> bool:
        return "/05.jsonl" in exchange.path and exchange.answer(403)

    proxy.fault = deny
    read: list[Any] = []
    with (
        pytest.raises(SourceError, match=r"05\.jsonl: access denied"),
        fetched(listed, tmp_path) as files,
    ):
        read.extend(files)
    assert list(tmp_path.iterdir()) == []
