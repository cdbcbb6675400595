"""What a bucket says, and what its errors say, on a real S3 server."""

import contextlib
import re
import time
from pathlib import Path

import pytest

from embedding_pipelines import objects
from embedding_pipelines.errors import BucketError
from embedding_pipelines.objects import Bucket, Object, is_uri, open_bucket
from embedding_pipelines_tests.buckets import CREDENTIALS, Exchange, Proxy, TestBucket

ODD_KEYS = ["a b.txt", "a#b?c=1.txt", "a%20b.txt", "ü/ß.txt", "q+r&s.txt", "d[1].csv", "e'\".csv"]


def opened(bucket: TestBucket) -> Bucket:
    return open_bucket(bucket.uri)[0]


def keys(entries: list[Object]) -> list[str]:
    return sorted(entry.key for entry in entries)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long for a server that is not there."""
    monkeypatch.setattr(objects, "RETRIES", 1)


def test_a_uri_names_a_bucket() -> None:
    assert is_uri("s3://b/x/*.csv")
    assert is_uri("gs://b")
    assert is_uri("az://container/x")
    assert not is_uri("data/s3://b")
    assert not is_uri("https://b/x.csv")
    with pytest.raises(BucketError, match=r"names no bucket\. Write it as s3://bucket/folder"):
        open_bucket("s3:///x.csv")


def test_objects_are_listed_found_and_read_whatever_their_key(
    bucket: TestBucket, tmp_path: Path
) -> None:
    for key in ODD_KEYS:
        bucket.put(key, f"content of {key}")
    entries = list(opened(bucket).walk(""))
    assert keys(entries) == sorted(ODD_KEYS)
    for entry in entries:
        assert opened(bucket).find(entry.key) == entry
        assert opened(bucket).download(entry, tmp_path / "copy") == entry
        assert (tmp_path / "copy").read_text() == f"content of {entry.key}"
    folders, here = opened(bucket).list_folder("")
    assert (folders, keys(here)) == (["ü"], sorted(set(ODD_KEYS) - {"ü/ß.txt"}))
    assert opened(bucket).find("absent") is None
    assert list(opened(bucket).walk("a")) == []  # a folder, no beginning of a name


def test_what_only_stands_for_a_folder_is_no_object(bucket: TestBucket) -> None:
    bucket.put("x/", b"")
    bucket.put("x/y/z.txt", b"z")
    bucket.put("x/empty.txt", b"")
    assert keys(list(opened(bucket).walk(""))) == ["x/empty.txt", "x/y/z.txt"]


def test_a_tag_changes_with_the_content_and_not_with_the_date(bucket: TestBucket) -> None:
    bucket.put("a", b"one")
    before = opened(bucket).find("a")
    bucket.put("a", b"two")
    assert opened(bucket).find("a") != before
    bucket.put("a", b"one")
    assert opened(bucket).find("a") == before


def test_a_large_object_is_read_in_parts_of_one_version(
    bucket: TestBucket, tmp_path: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "PART_BYTES", 10)
    bucket.put("a", b"0123456789" * 2 + b"012")
    entry = opened(bucket).find("a")
    assert entry is not None

    def replace(exchange: Exchange) -> bool:
        if exchange.number == len(before) + 2:  # the third part
            bucket.put("a", b"another content, longer than the old one")
        return False

    before = list(proxy.paths)
    assert opened(bucket).download(entry, tmp_path / "copy") == entry
    assert (tmp_path / "copy").read_bytes() == b"0123456789" * 2 + b"012"
    before, proxy.fault = list(proxy.paths), replace
    now = opened(bucket).download(entry, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"another content, longer than the old one"
    assert now == opened(bucket).find("a") != entry


def test_a_store_that_ignores_conditions_mixes_no_versions(
    bucket: TestBucket, tmp_path: Path, proxy: Proxy
) -> None:
    bucket.put("a", b"one")
    entry = opened(bucket).find("a")
    assert entry is not None
    bucket.put("a", b"two")

    def ignore(exchange: Exchange) -> bool:
        del exchange.handler.headers["If-Match"]
        return False

    proxy.fault = ignore
    assert opened(bucket).download(entry, tmp_path / "copy").tag != entry.tag
    assert (tmp_path / "copy").read_bytes() == b"two"


def test_an_object_that_never_holds_still_is_an_error(
    bucket: TestBucket, tmp_path: Path, proxy: Proxy
) -> None:
    bucket.put("a", b"0")
    entry = opened(bucket).find("a")
    assert entry is not None

    def replace(exchange: Exchange) -> bool:
        if exchange.handler.command == "GET":
            bucket.put("a", str(exchange.number))
        return False

    proxy.fault = replace
    with pytest.raises(BucketError, match=r"/a: is replaced again and again while it is read\. W"):
        opened(bucket).download(entry, tmp_path / "copy")
    bucket.delete("a")
    proxy.fault = lambda _: False
    with pytest.raises(BucketError, match=r"/a: the object is gone\. Put it back, or run again"):
        opened(bucket).download(entry, tmp_path / "copy")


def test_one_request_in_five_that_fails_goes_unnoticed(
    bucket: TestBucket, tmp_path: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "LONGEST_WAIT_SECONDS", 0.2)
    for number in range(12):
        bucket.put(f"{number}", b"x" * number)

    def fail(exchange: Exchange) -> bool:
        if exchange.number % 5 == 0:
            return exchange.answer(503, b"<Error><Code>SlowDown</Code></Error>")
        if exchange.number % 5 == 2:
            return exchange.reset()
        if exchange.number % 5 == 3 and "/11" in exchange.path:
            return exchange.answer(200, b"xxx", length=11)
        return False

    proxy.fault = fail
    entries = list(opened(bucket).walk(""))
    assert len(entries) == 12
    for entry in entries:
        opened(bucket).download(entry, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == b"x" * int(entry.key)


def test_a_listing_that_breaks_off_is_an_error_not_a_short_listing(
    bucket: TestBucket, proxy: Proxy, hasty: None
) -> None:
    def short_pages(exchange: Exchange) -> bool:
        exchange.handler.path += "&max-keys=2"
        return False

    def break_off(exchange: Exchange) -> bool:
        return "continuation-token" in exchange.path and exchange.answer(503)

    for number in range(5):
        bucket.put(f"{number}", b"x")
    proxy.fault = short_pages
    assert len(list(opened(bucket).walk(""))) == 5
    assert len(proxy.paths) == 3
    proxy.fault = lambda exchange: break_off(exchange) or short_pages(exchange)
    with pytest.raises(
        BucketError, match=r"the store at 127\S+ answers with 503\. What was read be"
    ):
        list(opened(bucket).walk(""))


def test_100_000_objects_are_listed_in_less_than_20_seconds(
    bucket: TestBucket, proxy: Proxy
) -> None:
    def page(exchange: Exchange) -> bool:
        """A thousand of them, which no server has to make first."""
        token = re.search(r"continuation-token=(\d+)", exchange.path)
        first = int(token[1]) if token else 0
        entries = "".join(
            f"<Contents><Key>in/{number:08}.jsonl</Key><Size>7</Size><ETag>&quot;{number:032x}&quot;"
            "</ETag><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for number in range(first, first + 1_000)
        )
        after = f"<NextContinuationToken>{first + 1_000}</NextContinuationToken>"
        body = f"<ListBucketResult>{after if first < 99_000 else ''}{entries}</ListBucketResult>"
        return exchange.answer(200, body.encode())

    proxy.fault = page
    started = time.perf_counter()
    assert len({entry.key for entry in opened(bucket).walk("in")}) == 100_000
    assert time.perf_counter() - started < 20
    assert len(proxy.paths) == 100


def denied(code: str, status: int) -> bytes:
    return f"<Error><Code>{code}</Code><Message>AKIATEST and more</Message></Error>".encode()


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "AccessDenied", r"s3://[\w-]+/x: access denied \(403, AccessDenied\)\. Give these"),
        (403, "InvalidAccessKeyId", r"the store does not take these credentials \(403, Invalid"),
        (400, "ExpiredToken", r"does not take these credentials \(400, ExpiredToken\)\. Set AWS"),
        (301, "PermanentRedirect", r"the bucket is in another region\. Set AWS_REGION to its own"),
        (404, "NoSuchBucket", r"there is no such bucket at 127\.0\.0\.1:\d+\. Correct its name\."),
        (500, "InternalError", r"the store at 127.0.0.1:\d+ answers with 500, InternalError\. Wha"),
    ],
)
def test_what_a_store_answers_is_said_in_a_sentence(
    bucket: TestBucket, proxy: Proxy, status: int, code: str, message: str, hasty: None
) -> None:
    proxy.fault = lambda exchange: exchange.answer(status, denied(code, status))
    with pytest.raises(BucketError, match=message) as caught:
        list(opened(bucket).walk("x"))
    assert "\n" not in str(caught.value)
    assert not any(
        secret in str(caught.value) for secret in CREDENTIALS.values() if "-1" not in secret
    )
    assert caught.value.__cause__ is None


def test_the_right_that_is_missing_is_named(bucket: TestBucket, proxy: Proxy, hasty: None) -> None:
    proxy.fault = lambda exchange: exchange.answer(403, denied("AccessDenied", 403))
    with pytest.raises(BucketError, match=r"the right to write objects, or use others"):
        opened(bucket).create("x", b"x")
    with pytest.raises(BucketError, match=r"the right to delete objects, or use others"):
        opened(bucket).delete(["x"])


def test_what_is_not_there_is_said_in_a_sentence(
    bucket: TestBucket, monkeypatch: pytest.MonkeyPatch, hasty: None
) -> None:
    with pytest.raises(BucketError, match=r"^s3://absent-bucket: there is no such bucket at 127"):
        list(open_bucket("s3://absent-bucket/x")[0].walk("x"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(
        BucketError, match=r"the store at 127\.0\.0\.1:1 does not answer\. What was"
    ):
        list(opened(bucket).walk(""))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://s3.invalid")
    with pytest.raises(BucketError, match=r"s3\.invalid is plain http.*set AWS_ALLOW_HTTP=true\."):
        list(opened(bucket).walk(""))
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    with pytest.raises(BucketError, match="does not answer"):
        list(opened(bucket).walk(""))


def test_a_key_that_cannot_be_read_is_named(bucket: TestBucket) -> None:
    bucket.put("x//y.csv", b"y")
    with pytest.raises(
        BucketError, match=r"s3://[\w-]+/x//y\.csv: the key has an empty part, '\.' "
    ):
        list(opened(bucket).walk("x"))


def test_credentials_come_from_the_environment_or_a_profile(
    bucket: TestBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: Proxy
) -> None:
    bucket.put("a", b"a")
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    profiles = tmp_path / "credentials"
    profiles.write_text("[work]\naws_access_key_id = AKIAWORK\naws_secret_access_key = hidden\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profiles))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(
        BucketError, match=r"there are no credentials\. Set AWS_ACCESS_KEY_ID and A"
    ):
        opened(bucket)
    seen: list[str] = []
    proxy.fault = lambda each: bool(seen.append(each.handler.headers["Authorization"] or ""))
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert opened(bucket).find("a")
    monkeypatch.setenv("AWS_PROFILE", "play")
    with pytest.raises(
        BucketError, match=r"profile \(play\) could not be found\. Set AWS_ACCESS_K"
    ):
        opened(bucket)
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    with contextlib.suppress(BucketError):  # not every server lets anybody in
        opened(bucket).find("a")
    assert [re.search(r"Credential=(\w+)", line) is not None for line in seen] == [True, False]


def test_google_s_store_is_read_in_the_same_way(
    bucket: TestBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It speaks S3's older language, too, which is the one that is used."""
    bucket.put("x/a.txt", b"a")
    monkeypatch.setenv("GOOGLE_BASE_URL", bucket.address)
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "a-token")
    google, key = open_bucket(f"gs://{bucket.name}/x")
    (entry,) = google.walk(key)
    assert google.uri(entry.key) == f"gs://{bucket.name}/x/a.txt"
    assert google.download(entry, tmp_path / "copy") == entry
    assert (tmp_path / "copy").read_bytes() == b"a"


def test_azure_without_an_account_is_told_what_to_set() -> None:
    with pytest.raises(
        BucketError, match=r"^az://c: there are no credentials\. Set AZURE_STORAGE_A"
    ):
        open_bucket("az://c/x")
