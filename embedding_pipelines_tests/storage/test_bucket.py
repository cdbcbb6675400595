"""The home's `warehouse.yaml`, and the store that may hold a warehouse."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from embedding_pipelines.errors import BucketError, ConfigError
from embedding_pipelines.objects import Bucket, open_folder
from embedding_pipelines.storage.bucket import PROVEN, bucket_of, open_uri, require_commits
from embedding_pipelines_tests.buckets import CREDENTIALS, TestBucket


def test_a_home_without_the_file_keeps_its_warehouse(tmp_path: Path) -> None:
    assert bucket_of(tmp_path) is None


@pytest.mark.parametrize("uri", ["s3://b/x", "gs://b", "az://c/x/y", "file:///tmp/x"])
def test_the_file_names_a_bucket(tmp_path: Path, uri: str) -> None:
    (tmp_path / "warehouse.yaml").write_text(f"bucket: {uri}/\n")
    assert bucket_of(tmp_path) == uri


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bucket: /tmp/x\n", "has to be one line"),
        ("bukket: s3://b\n", "has to be one line"),
        ("bucket: [s3://b]\n", "has to be one line"),
        ("s3://b\n", "has to be one line"),
        ("", "has to be one line"),
        ("bucket: {\n", r"line 2: this is no YAML.*has to be one line"),
        ("bucket: 's3://key:secret@b\n", "this is no YAML"),
        ("bucket: s3://[abc\n", "names no bucket"),
        ("bucket: file://folder\n", "names no bucket"),
        ("bucket: file:folder\n", "names no bucket"),
        ("bucket: file://server/share/x\n", "names no bucket"),
        ("bucket: s3://key:secret@b/x\n", "holds credentials"),
    ],
)
def test_any_other_file_is_an_error_with_an_example(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "warehouse.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words) as error:
        bucket_of(tmp_path)
    assert "secret" not in str(error.value)


def test_a_store_that_commits_is_tried_once(
    bucket: TestBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, prefix = open_uri(f"{bucket.uri}/warehouse")
    require_commits(opened, prefix)
    assert [entry.key for entry in opened.list_after("warehouse")] == [f"warehouse/{PROVEN}"]
    monkeypatch.delattr(Bucket, "create")
    require_commits(opened, prefix)


def test_a_store_that_ignores_conditions_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_folder(tmp_path)

    def create(self: Bucket, key: str, content: bytes) -> bool:
        self._store.put(key, content, mode="overwrite")
        return True

    monkeypatch.setattr(Bucket, "create", create)
    with pytest.raises(BucketError, match=r"cannot hold a warehouse.*8 at once 8 did"):
        require_commits(opened, "")
    assert opened.list_after("") == []


@pytest.mark.slow
def test_rclone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its S3 server ignores conditions: it lets everybody create everything."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    (tmp_path / "shop").mkdir()
    program = Path(sys.executable).with_name("rclone")
    keys = f"{CREDENTIALS['AWS_ACCESS_KEY_ID']},{CREDENTIALS['AWS_SECRET_ACCESS_KEY']}"
    command = [str(program), "serve", "s3", str(tmp_path), "--addr", address, "--auth-key", keys]
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://{address}"}.items():
        monkeypatch.setenv(name, value)
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            opened, prefix = open_uri("s3://shop/w")  # which waits until it answers
            with pytest.raises(BucketError, match="cannot hold a warehouse"):
                require_commits(opened, prefix)
        finally:
            server.terminate()
