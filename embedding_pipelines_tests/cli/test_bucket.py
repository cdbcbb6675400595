"""`run`, `rollback` and `status` of a warehouse that machines share by a bucket."""

import shutil
from pathlib import Path

import pytest

from embedding_pipelines.remote import is_current, open_remote
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import write_csv
from embedding_pipelines_tests.commands import Command
from embedding_pipelines_tests.shared import EDITED, machine


def test_what_commands_change_is_published(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    bucket, command = tmp_path / "bucket", Command(monkeypatch, capsys)
    machine(home, bucket.as_uri())
    assert command("run", "p").code == 0
    write_csv(home, "a.csv", EDITED)
    assert command("run", "p").code == 0
    remote = open_remote(Warehouse(home), "p")
    assert remote is not None
    assert remote.newest() == 2
    said = command("run", "p")
    assert "nothing has changed" in said.out + said.err
    assert remote.newest() == 2
    assert command("rollback", "p").code == 0
    assert remote.newest() == 3
    assert is_current(Warehouse(home), "p")
    assert "generation 3 in file://" in " ".join(command("status", "p").out.split())
    shutil.rmtree(bucket)
    said = command("run", "p")
    assert (said.code, said.out) == (1, "")
    assert "does not hold generation 3" in " ".join(said.err.split())
