"""Every test of `doctor`, well and not well, by real damage and a real service."""

import errno
from pathlib import Path

import pytest

from embedding_pipelines.doctor.examine import examine
from embedding_pipelines.errors import ReleaseError
from embedding_pipelines.releases import live_release, rollback
from embedding_pipelines.spec.load import read_draft
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import copy_home, run_of, run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.cli.test_main import command as command
from embedding_pipelines_tests.commands import Command
from embedding_pipelines_tests.conftest import HASHING
from embedding_pipelines_tests.shared import at_work, machine

NAMES = ["file", "source", "model", "run", "state", "rows", "releases", "garbage"]


@pytest.fixture(scope="module")
def p_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("p")
    write_pipeline(home, "p", HASHING)
    write_csv(home, "a.csv", [(1, "red fox", "x"), (2, "blue whale", "y")])
    run_steps(home, "p")
    return home


@pytest.fixture
def p(home: Path, p_once: Path) -> Path:
    return copy_home(p_once, home)


def findings(home: Path) -> dict[str, str]:
    """The sentences of what is not well."""
    all_of_them = list(examine(read_draft(home / "pipelines" / "p.yaml"), Warehouse(home)))
    assert [finding.what for finding in all_of_them] == NAMES[: len(all_of_them)]
    return {entry.what: entry.sentence for entry in all_of_them if not entry.is_well}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_a_pipeline_is_well_before_and_after_its_first_run(home: Path, p: Path) -> None:
    assert findings(home) == {}
    write_pipeline(home, "p", HASHING.replace("id: id", "id: id, max_rejected: 1"))
    assert findings(home) == {}


def test_a_file_without_a_pipeline_ends_there(home: Path) -> None:
    write_pipeline(home, "p", "source: [\n")
    assert list(findings(home)) == ["file"]


def test_what_the_source_and_the_model_lack_is_told(
    p: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    (p / "data" / "a.csv").unlink()
    service = "model: {provider: voyage, model: voyage-3.5, api_key_env: NO_SUCH_KEY}\n"
    write_pipeline(p, "p", HASHING.replace("model: {provider: hashing}\n", service))
    wrong = findings(p)
    assert set(wrong) == {"file", "source", "model"}
    assert "matches no file" in wrong["source"]
    assert "NO_SUCH_KEY is not set" in wrong["model"]


def test_a_model_that_is_not_the_release_s_is_told(p: Path) -> None:
    write_pipeline(
        p, "p", HASHING.replace("{provider: hashing}", "{provider: hashing, dimensions: 32}")
    )
    wrong = findings(p)
    assert list(wrong) == ["model"]
    assert "release 1 is of" in wrong["model"]


def test_every_kind_of_damage_is_named_and_the_next_run_ends_it(p: Path) -> None:
    folder = run_of(p, "p").folder
    shard = next(folder.chunks.folder.glob("*.parquet"))
    table = folder.tables / f"{live_release(folder).table}.lance"
    flip(folder.checks)
    flip(shard)
    flip(max(table.rglob("*.lance"), key=lambda path: path.stat().st_size))
    wrong = findings(p)
    assert list(wrong) == ["state", "rows", "releases"]
    assert str(folder.checks) in wrong["state"]
    assert "chunks of b" in wrong["rows"]
    assert "release 1: " in wrong["releases"]
    run_steps(p, "p")
    assert findings(p) == {}  # release 1 is kept, to be named; release 2 is live
    *_, last, _ = examine(read_draft(p / "pipelines" / "p.yaml"), Warehouse(p))
    assert "2: tables and codecs are as they were written; live is 2. release 1 " in last.sentence
    assert last.sentence.count(str(table)) == 1
    assert "(keep_releases: 5)" in last.sentence
    write_csv(p, "a.csv", [(1, "red fox", "x"), (2, "blue whale", "y"), (3, "a hen", "z")])
    run_steps(p, "p")
    with pytest.raises(ReleaseError, match=r"stays live\. With `--to` you can go to 2\."):
        rollback(folder, 1)


def test_a_damaged_live_release_with_a_whole_newer_one_names_it(p: Path) -> None:
    folder = run_of(p, "p").folder
    table = folder.tables / f"{live_release(folder).table}.lance"
    write_pipeline(
        p, "p", HASHING.replace("{provider: hashing}", "{provider: hashing, dimensions: 32}")
    )
    run_steps(p, "p")
    rollback(folder, 1)
    flip(max(table.rglob("*.lance"), key=lambda path: path.stat().st_size))
    assert "`embedding-pipelines rollback p --to 2` makes it live." in findings(p)["releases"]


def test_what_is_lost_or_cut_short_is_named_like_what_is_damaged(p: Path) -> None:
    folder = run_of(p, "p").folder
    shard = next(folder.embeddings.folder.glob("b*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1])
    next(folder.documents.folder.glob("b*.parquet")).unlink()
    flip(folder.codecs / live_release(folder).codec)
    flip(folder.history)
    wrong = findings(p)
    assert list(wrong) == ["state", "rows", "releases"]
    assert str(folder.history) in wrong["state"]
    assert "embeddings of b" in wrong["rows"]
    assert "documents of b" in wrong["rows"]
    assert "no codec that can be read" in wrong["releases"]
    run_steps(p, "p")
    assert findings(p) == {}


def test_a_test_that_the_disk_fails_leaves_the_others(
    p: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error", str(p / "data"))

    for name in ("check_file", "damaged_states", "find_garbage"):
        monkeypatch.setattr(f"embedding_pipelines.doctor.examine.{name}", fail)
    wrong = findings(p)
    assert list(wrong) == ["file", "state", "garbage"]
    assert all(sentence.startswith(f"{p / 'data'}: ") for sentence in wrong.values())


def test_the_command_says_a_line_for_each_and_ends_with_1_if_one_is_bad(
    p: Path, command: Command
) -> None:
    said = command("doctor", "p")
    assert (said.code, said.err) == (0, "")
    assert [line.split()[1:3] for line in said.out.splitlines()] == [
        [name, "ok:"] for name in [*NAMES, "cache"]
    ]
    result, cache = command("doctor", "p", "--json").results
    assert (result["well"], cache["well"]) == (True, True)
    assert cache["findings"][0]["what"] == "cache"
    (p / "data" / "a.csv").unlink()
    said = command("doctor", "pipelines/p.yaml")
    assert said.code == 1
    assert said.err == "error: p: not well: file, source.\n"


def test_what_a_bucket_lacks_is_told_and_what_it_has_is_fetched(p: Path, tmp_path: Path) -> None:
    (p / "warehouse.yaml").write_text(f"bucket: {(tmp_path / 'bucket').as_uri()}\n")
    with at_work(p):
        pass
    other = machine(tmp_path / "other", (tmp_path / "bucket").as_uri())
    write_pipeline(other, "p", HASHING)
    draft = read_draft(other / "pipelines" / "p.yaml")
    fetched = {finding.what: finding for finding in examine(draft, Warehouse(other))}
    assert fetched["bucket"].sentence.startswith("generation 1 in file://")
    assert fetched["rows"].is_well
    (generation,) = (tmp_path / "bucket").rglob("generations/*.json")
    generation.unlink()
    lost = {finding.what: finding for finding in examine(draft, Warehouse(other))}
    assert not lost["bucket"].is_well
    assert "does not hold generation 1" in lost["bucket"].sentence
