"""What nobody needs goes, and nothing that a release, a candidate or a run does."""

import contextlib
import random
import shutil
from pathlib import Path

import pytest

from embedding_pipelines.cache_use import cache_use
from embedding_pipelines.clean import clean
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.errors import EmbeddingPipelinesError
from embedding_pipelines.releases import is_readable, live_release, read_releases, rollback
from embedding_pipelines.remote import refresh
from embedding_pipelines.steps.garbage import CANDIDATES, find_garbage
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import (
    copy_home,
    live_rows,
    run_of,
    run_recorded,
    run_steps,
    steps,
    write_csv,
    write_pipeline,
)
from embedding_pipelines_tests.cli.test_main import command as command
from embedding_pipelines_tests.commands import Command
from embedding_pipelines_tests.conftest import HASHING
from embedding_pipelines_tests.shared import at_work, machine

ROWS = [(number, f"word{number % 7} text number {number}", "c") for number in range(20)]
OPTIONS = ["", "compression: [int8]\n", "compression: [{kind: pca, dimensions: 16}]\n"]
DAY = 86_400


@pytest.fixture(scope="module")
def p_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("p")
    write_pipeline(home, "p", HASHING)
    write_csv(home, "a.csv", ROWS)
    run_steps(home, "p")
    return home


@pytest.fixture
def p(home: Path, p_once: Path) -> Path:
    return copy_home(p_once, home)


def files_of(home: Path) -> dict[str, bytes]:
    files = (path for path in (home / "data").rglob("*") if path.is_file())
    return {path.relative_to(home).as_posix(): path.read_bytes() for path in files}


def litter(home: Path) -> dict[str, str]:
    """Leaves of each kind of garbage something, as killed processes and older versions do."""
    folder, tables = Warehouse(home).pipeline("p"), Warehouse(home).tables
    name = live_release(folder).table
    shard = next(folder.chunks.folder.glob("b00-*.parquet"))
    unnamed = shard.with_name(f"b00-{'0' * 16}.parquet")
    unnamed.write_bytes(shard.read_bytes())
    codec = folder.codecs / live_release(folder).codec
    old_codec = codec.with_name(f"{'0' * 16}-{'1' * 16}.npz")
    old_codec.write_bytes(codec.read_bytes())
    draft = folder.chunks.folder / ".b00.json.0123456789ab.tmp"
    draft.write_text("half")
    table_draft = tables / f".{name}.checksums.json.0123456789ab.tmp"
    table_draft.write_text("half")
    (folder.folder / CANDIDATES).mkdir()
    (folder.folder / CANDIDATES / "x").write_text("x")
    other = tables / f"p-{'a' * 12}.lance"
    (other / "_versions").mkdir(parents=True)
    dead = tables / f"{name}.lance" / "data" / "of_a_dead_writer.lance"
    dead.write_bytes(b"x" * 1_000)
    paths = {
        unnamed: "shard",
        old_codec: "codec",
        draft: "leftover",
        table_draft: "leftover",
        folder.folder / CANDIDATES: "leftover",
        other: "table",
        dead: "version",
    }
    return {str(path): what for path, what in paths.items()}


def test_each_kind_of_garbage_goes_and_a_look_changes_nothing(p: Path) -> None:
    assert clean(p).garbage == {"p": []}
    clean_files = files_of(p)
    garbage = litter(p)
    before = files_of(p)
    looked = clean(p, look_only=True)
    assert {str(entry.path): entry.what for entry in looked.garbage["p"]} == garbage
    assert looked.size_bytes > 1_000
    assert files_of(p) == before
    assert clean(p).garbage == looked.garbage
    assert files_of(p) == clean_files
    assert run_recorded(p, "p")[1] == []


def test_a_pipeline_at_work_or_with_damaged_records_is_left_alone(p: Path) -> None:
    folder = Warehouse(p).pipeline("p")
    litter(p)
    before = files_of(p)
    with folder.lock("run"):
        assert "Pipeline 'p' is being run" in clean(p).left_alone[0]
    for path in (folder.releases, folder.releases_copy):
        path.write_bytes(b"{}")
    assert "is damaged" in clean(p).left_alone[0]
    assert files_of(p).keys() - before.keys() == {
        f"data/warehouse/pipelines/p/{name}.lock" for name in ("run", "step")
    }


def test_what_is_cleaned_is_published(p: Path, tmp_path: Path) -> None:
    uri = (tmp_path / "bucket").as_uri()
    (p / "warehouse.yaml").write_text(f"bucket: {uri}\n")
    litter(p)
    with at_work(p):
        pass
    assert len(clean(p).garbage["p"]) >= 5  # a copy keeps no empty table
    assert clean(p).garbage == {"p": []}
    other = machine(tmp_path / "other", uri)
    write_pipeline(other, "p", HASHING)
    with at_work(other):
        assert find_garbage(run_of(other, "p")) == []


def test_a_copy_that_is_only_searched_is_left_alone_and_said(
    p: Path, home: Path, tmp_path: Path, command: Command
) -> None:
    uri = (tmp_path / "bucket").as_uri()
    (p / "warehouse.yaml").write_text(f"bucket: {uri}\n")
    with at_work(p):
        pass
    shutil.rmtree(Warehouse(p).root)
    refresh(Warehouse(p), "p", "search")
    draft = Warehouse(p).pipeline("p").folder / ".x.json.0123456789ab.tmp"
    draft.write_text("half")
    assert clean(p).partial == ["p"]
    assert draft.exists()
    said = command("clean")
    assert said.code == 0
    assert "p: not looked at, for this machine has only what its searches read." in said.out


def test_unused_vectors_go_after_their_time_and_for_room_and_used_ones_never(
    p: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = 20_000

    def after(more: int) -> None:
        nonlocal days
        days += more
        monkeypatch.setattr("embedding_pipelines.clean.time.time", lambda: days * DAY + 5.0)

    with EmbeddingCache(Warehouse(p).cache) as cache:
        used = len(cache)
        for number in range(300):
            cache.set(f"of a program {number}", "its model", [1.0] * 384)
    after(0)
    assert (clean(p).vectors, clean(p).left_alone) == (0, [])  # nothing leaves by itself
    (p / "warehouse.yaml").write_text("cache: {unused_days: 30}\n")
    assert clean(p).vectors == 0  # seen for the first time
    after(29)
    with EmbeddingCache(Warehouse(p).cache) as cache:
        cache.set("a later one", "its model", [1.0] * 384)
    assert (clean(p).vectors, clean(p, look_only=True).vectors) == (0, 0)
    after(1)
    assert clean(p, look_only=True).vectors == 300
    size = Warehouse(p).cache.stat().st_size
    assert clean(p).vectors == 300
    assert Warehouse(p).cache.stat().st_size < size / 2
    with EmbeddingCache(Warehouse(p).cache) as cache:
        assert len(cache) == used + 1
        for number in range(300):
            cache.set(f"another {number}", "its model", [1.0] * 384)
    (p / "warehouse.yaml").write_text("cache: {max_gb: 0.0004}\n")
    looked = clean(p, look_only=True).vectors
    assert 0 < looked < 301
    assert clean(p).vectors == looked
    with EmbeddingCache(Warehouse(p).cache) as cache:
        assert cache.get("a later one", "its model") is None  # unused longest
        assert cache.get("another 299", "its model") is not None
    (p / "warehouse.yaml").write_text("cache: {max_gb: 0.000001, unused_days: 1}\n")
    clean(p)
    assert len(EmbeddingCache(Warehouse(p).cache)) == used
    assert clean(p).vectors == 0


def test_the_command_says_what_goes_and_how_much(
    p: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = Command(monkeypatch, capsys)
    assert command("clean").out == "nothing to delete\n"
    litter(p)
    said = command("clean", "--dry-run")
    assert "p: 3 leftovers, 0.0 MB" in said.out
    assert said.out.endswith(" MB would go\n")
    (result,) = command("clean", "--json").results
    assert len(result["garbage"]) == 7
    assert result["garbage"][0].keys() == {"pipeline", "what", "path", "size_bytes"}
    (p / "warehouse.yaml").write_text("cache: {unused_days: 0}\n")
    said = command("clean")
    assert said.code == 1
    assert "cache.unused_days" in said.err
    assert "cache.unused_days: must be 1 or more" in said.err


def wander(home: Path, seed: int, count: int) -> None:
    """Runs, edits, other options, rollbacks, killed steps and litter, and after each a cleaning."""
    dice, rows = random.Random(seed), list(ROWS)  # nothing secret
    (home / "warehouse.yaml").write_text("cache: {unused_days: 1, max_gb: 0.000001}\n")
    folder = Warehouse(home).pipeline("p")
    for _ in range(count):
        act = dice.choice(["edit", "edit", "option", "rollback", "litter", "held back", "killed"])
        if act == "edit":
            rows[dice.randrange(20)] = (dice.randrange(20, 999), f"new {dice.random()}", "d")
        text = HASHING.replace("model:", "store: {kind: lancedb, keep_releases: 2}\nmodel:")
        if act == "held back":
            text = text.replace("known_items: 8", "known_items: 8, require: {known_item_mrr: 1.5}")
            rows[0] = (0, f"another {dice.random()}", "e")
        write_pipeline(home, "p", text + dice.choice(OPTIONS))
        write_csv(home, "a.csv", list({row[0]: row for row in rows}.values()))
        if act == "litter" and not (folder.folder / CANDIDATES).exists():
            litter(home)
        elif act == "rollback":
            go_to(home, read_releases(folder).releases[0].number)
        elif act == "killed":
            with run_of(home, "p") as run, contextlib.suppress(EmbeddingPipelinesError):
                for _ in zip(range(dice.randrange(1, 9)), steps(run), strict=False):
                    pass
        else:
            with contextlib.suppress(EmbeddingPipelinesError):  # held back
                run_steps(home, "p")
        before, live = seen(home), live_rows(home, "p")
        used = cache_use(home).used_by
        assert clean(home).left_alone == []
        assert clean(home).garbage == {"p": []}
        assert seen(home) == before
        assert all(before.values())
        assert live_rows(home, "p") == live
        assert (cache_use(home).used_by, cache_use(home).unused) == (used, 0)
    for entry in read_releases(folder).releases:
        go_to(home, entry.number)
        assert len(live_rows(home, "p")) == entry.rows


def go_to(home: Path, number: int) -> None:
    folder = Warehouse(home).pipeline("p")
    if read_releases(folder).live != number:
        rollback(folder, number)


def seen(home: Path) -> dict[int, bool]:
    """The releases, and whether each can be searched."""
    folder = Warehouse(home).pipeline("p")
    return {entry.number: is_readable(folder, entry) for entry in read_releases(folder).releases}


@pytest.mark.parametrize("seed", range(3))
def test_whatever_was_done_before_all_releases_outlive_a_cleaning(p: Path, seed: int) -> None:
    wander(p, seed, 5)


@pytest.mark.slow
def test_the_same_at_length(p_once: Path, tmp_path: Path, at_length: bool) -> None:
    for seed in range(100, 130 if at_length else 103):
        wander(copy_home(p_once, tmp_path / str(seed)), seed, 12)
