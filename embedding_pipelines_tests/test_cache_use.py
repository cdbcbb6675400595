"""Of the cache only what no pipeline uses is forgotten, and only on request."""

from pathlib import Path

import pytest

from embedding_pipelines.cache_use import cache_use, forget_unused
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.errors import BusyError, ConfigError
from embedding_pipelines.push import Pusher
from embedding_pipelines.releases import rollback
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import (
    copy_home,
    run_of,
    run_recorded,
    run_steps,
    write_csv,
    write_pipeline,
)
from embedding_pipelines_tests.commands import Command
from embedding_pipelines_tests.conftest import HASHING

ROWS = [(number, f"word{number % 7} text number {number}", "c") for number in range(40)]


@pytest.fixture(scope="module")
def used_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two pipelines, the second of another space, and 2,000 vectors of nobody's."""
    home = tmp_path_factory.mktemp("used")
    write_pipeline(home, "p", HASHING)
    write_pipeline(home, "q", HASHING.replace("hashing}", "hashing, dimensions: 32}"))
    write_csv(home, "a.csv", ROWS)
    run_steps(home, "p")
    run_steps(home, "q")
    with EmbeddingCache(Warehouse(home).cache) as cache:
        for number in range(2_000):
            cache.set(f"of a program {number}", "its model", [1.0] * 384)
    return home


@pytest.fixture
def used(home: Path, used_once: Path) -> Path:
    return copy_home(used_once, home)


def forget_cached(home: Path, name: str) -> list[str]:
    """The texts that reach the model when all that a run has made but the cache is gone."""
    folder = run_of(home, name).folder
    for shards in (folder.chunks, folder.embeddings):
        for path in shards.folder.glob("b*"):
            path.unlink()
    return run_recorded(home, name)[1]


def test_only_what_no_pipeline_uses_is_forgotten_and_the_file_shrinks(used: Path) -> None:
    before = cache_use(used)
    assert before.unused == 2_000
    assert all(before.used_by[name] >= 40 for name in ("p", "q"))
    assert cache_use(used) == before  # a look changes nothing
    assert forget_unused(used).unused == 2_000
    after = cache_use(used)
    assert (after.unused, after.used_by) == (0, before.used_by)
    assert after.size_bytes < before.size_bytes - 2_000 * 1_536
    assert forget_cached(used, "p") == forget_cached(used, "q") == []


def test_texts_of_kept_releases_and_of_an_unfinished_run_stay(used: Path) -> None:
    write_csv(used, "a.csv", [(number, f"new {text}", cat) for number, text, cat in ROWS])
    run_steps(used, "p")
    assert cache_use(used).unused == 2_000
    forget_unused(used)
    rollback(run_of(used, "p").folder, 1)
    write_csv(used, "a.csv", ROWS)
    assert run_recorded(used, "p")[1] == []


def test_texts_that_were_pushed_and_that_no_run_has_read_stay(used: Path) -> None:
    with Pusher(run_of(used, "p").spec, Warehouse(used)) as pusher:
        pusher.put([{"id": "new", "title": "a text that was just pushed"}])
    before = cache_use(used).used_by
    assert forget_unused(used).unused == 2_000
    assert cache_use(used).used_by == before
    with Pusher(run_of(used, "p").spec, Warehouse(used)) as pusher:
        receipt = pusher.put([{"id": "again", "title": "a text that was just pushed"}])
    assert receipt.embedded == 0


def test_a_deleted_pipelines_vectors_are_unused(used: Path) -> None:
    (used / "pipelines" / "q.yaml").unlink()
    use = cache_use(used)
    assert use.used_by.keys() == {"p"}
    assert use.unused > 2_000


def test_nothing_is_forgotten_that_may_be_used(used: Path) -> None:
    with Warehouse(used).pipeline("q").lock("run"), pytest.raises(BusyError, match="'q'"):
        forget_unused(used)
    write_pipeline(used, "broken", "model: {")
    with pytest.raises(ConfigError, match=r"broken\.yaml.*Mend or delete it"):
        forget_unused(used)
    assert len(EmbeddingCache(Warehouse(used).cache)) > 2_000


def test_the_command_shows_and_asks(
    used: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = Command(monkeypatch, capsys)
    assert "  of no pipeline: 2,000" in command("cache").out.splitlines()
    said = command("cache", "--forget", "unused")
    assert said.code == 1
    assert "2,000 vectors of no pipeline, those of programs too. Say --yes" in said.err
    assert command("cache", "--forget", "everything").code == 2
    assert "Forgot 2,000 vectors: the file is " in command("cache", "--forget", "unused", "-y").out
    (result,) = command("cache", "--json").results
    assert result["used_by"][-1] == {"pipeline": None, "vectors": 0}


def test_each_service_that_is_away_has_a_line_of_its_own(
    used: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {name: f"http://127.0.0.1:{port}" for port, name in enumerate(("away", "gone"), 1)}
    for name, place in places.items():
        model = f"ollama, model: m, base_url: '{place}'}}"
        write_pipeline(used, name, HASHING.replace("hashing}", model))
    write_pipeline(used, "broken", "model: {")
    said = Command(monkeypatch, capsys)("cache", "--forget", "unused", "--yes", "--json")
    assert said.code == 1
    counts = {row["pipeline"]: row["vectors"] for row in said.results[0]["used_by"]}
    assert counts["p"] >= 40
    assert [counts[name] for name in ("away", "broken", "gone", None)] == [None] * 4
    faults = {error["pipeline"]: error["error"] for error in said.envelope["errors"]}
    assert all(f"{name}: {place}/" in faults[name] for name, place in places.items())
    assert "broken.yaml:1" in faults["broken"]
    assert "nothing is forgotten" in faults[None]
    assert len(EmbeddingCache(Warehouse(used).cache)) > 2_000
    said = Command(monkeypatch, capsys)("cache")
    assert {"  away: nobody can tell", "  of no pipeline: nobody can tell"} <= {
        *said.out.splitlines()
    }


def test_a_home_without_a_cache_has_none_afterwards(home: Path) -> None:
    assert (cache_use(home).vectors, forget_unused(home).vectors) == (0, 0)
    assert not Warehouse(home).cache.exists()
