"""Objects are named by the same paths as files."""

from pathlib import Path

import pytest

from embedding_pipelines.errors import ConfigError, SourceError
from embedding_pipelines.sources.paths import is_within
from embedding_pipelines_tests.buckets import Exchange, Proxy, TestBucket
from embedding_pipelines_tests.contracts_sources import make

KEYS = (
    "b.csv",
    "d[1].csv",
    "d1.csv",
    "a/x, y.csv",
    "a/é.tsv.gz",
    "a/deep/z.CSV",
    "a/deep/.git/c.csv",
    "a/notes.txt",
    "a/.hidden.csv",
    ".own/x.csv",
    "day=2026-01-01/part-0.csv",
    "day=2026-01-02/part-0.csv",
)
PATHS = (
    "",
    "a",
    "a/",
    "a/*.csv",
    "b.csv",
    "d[1].csv",
    "d[12].csv",
    "**/*.[cC]*",
    "a/**",
    "**/deep/*",
    "?/deep/*",
    "*",
    "a/.*.csv",
    "day=2026-*/part-*.csv",
    ".own",
    ".own/*",
)


def names(home: Path, path: str | list[str], kind: str = "csv") -> list[str]:
    return [file.name for file in make(kind, path).files(home)]


def test_a_path_names_the_same_objects_as_files(bucket: TestBucket, tmp_path: Path) -> None:
    for key in KEYS:
        bucket.put(key, "text\nx\n")
        (tmp_path / "files" / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / key).write_text("text\nx\n")
    for path in PATHS:
        files = [name.removeprefix("files/") for name in names(tmp_path, f"files/{path}")]
        assert files, path
        assert names(tmp_path, f"{bucket.uri}/{path}") == [f"{bucket.uri}/{key}" for key in files]
        source = f"{bucket.uri}/{path}"
        files = [
            note.replace("files/", f"{bucket.uri}/")
            for note in make("csv", f"files/{path}").omissions(tmp_path)
        ]
        assert make("csv", source).omissions(tmp_path) == files, path
    assert names(tmp_path, [bucket.uri, f"{bucket.uri}/b.csv", "files/b.csv"])[0] == "files/b.csv"


def test_only_what_may_match_is_listed(bucket: TestBucket, tmp_path: Path, proxy: Proxy) -> None:
    """A bucket may hold millions of objects beside those of the source."""
    for key in ("in/a.csv", "in/old/b.csv", "out/c.csv"):
        bucket.put(key, "text\nx\n")
    assert names(tmp_path, f"{bucket.uri}/in/*.csv") == [f"{bucket.uri}/in/a.csv"]
    (request,) = proxy.paths
    assert "prefix=in%2F" in request
    assert "delimiter=%2F" in request


def test_a_path_that_matches_nothing_says_what_the_bucket_holds(
    bucket: TestBucket, tmp_path: Path
) -> None:
    with pytest.raises(
        SourceError, match=r"matches no object; looked in '\S+/', which holds nothing\."
    ):
        names(tmp_path, bucket.uri)
    bucket.put("data/products/a.csv", "text\nx\n")
    bucket.put("data/readme.txt", "x")
    with pytest.raises(SourceError) as caught:
        names(tmp_path, f"{bucket.uri}/data/prodcuts/*.csv")
    assert str(caught.value) == (
        f"source.path '{bucket.uri}/data/prodcuts/*.csv' matches no object; looked in "
        f"'{bucket.uri}/data', which holds 'products', 'readme.txt'. Did you mean 'products'? "
        "Correct the path."
    )
    with pytest.raises(
        SourceError, match=r"no object in 's3://\w+/data' ends with \.jsonl.*Name t"
    ):
        names(tmp_path, f"{bucket.uri}/data", "jsonl")
    with pytest.raises(SourceError, match=r"^s3://absent: there is no such bucket"):
        names(tmp_path, "s3://absent/x.csv")
    with pytest.raises(
        SourceError, match=r"of a kind that is not read; s3://, gs:// and az:// are"
    ):
        names(tmp_path, "https://host/x.csv")


def test_a_bucket_that_may_not_be_listed_is_an_error(
    bucket: TestBucket, tmp_path: Path, proxy: Proxy
) -> None:
    bucket.put("a.csv", "text\nx\n")

    def deny(exchange: Exchange) -> bool:
        return exchange.answer(403, b"<Error><Code>AccessDenied</Code></Error>")

    proxy.fault = deny
    for path in ("", "/*.csv", "/a.csv"):
        with pytest.raises(SourceError, match="access denied"):
            names(tmp_path, bucket.uri + path)


def test_a_path_in_a_bucket_names_the_extra_that_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "obstore.store", None)
    with pytest.raises(
        ConfigError, match=r"A path in an object store needs .*obstore.*\[buckets\]"
    ):
        names(tmp_path, "s3://b/x.csv")


@pytest.mark.parametrize(
    ("entry", "name", "is_within_it"),
    [
        ("photos/", "photos/a/b.png", True),
        ("photos/**/*.png", "photos/a/b.png", True),
        ("photos", "photos2/b.png", False),
        ("photos", "photos/../secret.png", False),
        ("photos", "/etc/passwd", False),
        ("/data/photos", "/data/photos/b.png", True),
        ("photos", "~nobody/b.png", False),
        ("~no-such-user", "~no-such-user/b.png", True),
        ("s3://mine/photos/*", "s3://mine/photos/b.png", True),
        ("s3://mine/photos", "s3://mine/b.png", False),
        ("s3://mine/photos", "photos/b.png", False),
    ],
)
def test_an_input_lies_within_what_a_path_names(
    tmp_path: Path, entry: str, name: str, is_within_it: bool
) -> None:
    assert is_within([entry], tmp_path, name) == is_within_it
