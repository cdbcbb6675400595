"""plan: what it says is what the next run does, in rows, texts, tokens, requests and dollars, and
it asks nobody."""

import dataclasses
import errno
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedding_pipelines.errors import BusyError, ConfigError, SourceError, StoreError
from embedding_pipelines.inference.weights import operations_per_token
from embedding_pipelines.plan import Plan
from embedding_pipelines.plan import plan as make_plan
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import (
    live_rows,
    run_of,
    run_steps,
    write_csv,
    write_pipeline,
)
from embedding_pipelines_tests.conftest import UNMEASURED
from embedding_pipelines_tests.embedding.service import DIALECT
from embedding_pipelines_tests.providers.wire import WireServer, serve

PIPELINE = """\
source: {{kind: csv, path: 'data/*.csv', id: id, text: [title], metadata: [cat]}}
model:
  provider: openai
  base_url: {url}/v1
  model: little
  dimensions: 64
  api_key_env: A_KEY_THAT_IS_NOT_SET
  usd_per_million_tokens: 5.0
partitions: 2
"""
ROWS = [(n, f"tale {n} of the fox and of hen number {n % 7}", "tale") for n in range(300)]


def write(home: Path, server: WireServer, more: str = "") -> None:
    measured = more if "evaluation" in more else UNMEASURED + more
    write_pipeline(home, "tales", PIPELINE.format(url=server.url) + measured)


def plan(home: Path, name: str = "tales") -> Plan:
    with run_of(home, name) as run:
        return make_plan(run)


def run(home: Path, server: WireServer) -> dict[str, float]:
    """What a run did: rows, what the server was asked for, and what the reports say of it."""
    before, known = len(server.requests), live_rows_or_none(home)
    reports = run_steps(home, "tales")
    now = live_rows(home, "tales")
    both = known.keys() & now.keys()
    made = [
        report.statistics for report in reports if report.step == "embeddings" and report.changed
    ]
    return {
        "rows_new": len(now.keys() - known.keys()),
        "rows_changed": sum(known[name]["text"] != now[name]["text"] for name in both),
        "rows_deleted": len(known.keys() - now.keys()),
        "requests": len(server.requests) - before,
        "texts_to_embed": sum(len(body["input"]) for body in server.requests[before:]),
        "tokens": sum(statistics["embedded_tokens"] for statistics in made),
    }


def live_rows_or_none(home: Path) -> dict[str, dict[str, object]]:
    return live_rows(home, "tales") if Warehouse(home).pipeline("tales").releases.exists() else {}


def said(made: Plan) -> dict[str, float]:
    names = ("rows_new", "rows_changed", "rows_deleted", "requests", "texts_to_embed", "tokens")
    return {name: getattr(made, name) for name in names}


@pytest.fixture
def server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WireServer]:
    """The service of the pipeline `tales`, which has no key yet."""
    monkeypatch.delenv("A_KEY_THAT_IS_NOT_SET", raising=False)
    with serve(DIALECT) as running:
        write(home, running)
        write_csv(home, "a.csv", ROWS)
        yield running


@pytest.fixture
def key(server: WireServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY_THAT_IS_NOT_SET", "now-it-is")


def test_a_plan_asks_nobody_and_needs_no_key(home: Path, server: WireServer) -> None:
    made = plan(home)
    assert not server.requests
    assert (made.pipeline, made.rows_new, made.texts_to_embed, made.cache_hits) == (
        "tales",
        300,
        300,
        0,
    )
    assert (made.seconds, made.within_budget) == (0.1, None)
    assert made.seconds_from.startswith("an estimate before the first run")
    assert made.missing == [
        "The environment variable A_KEY_THAT_IS_NOT_SET is not set, and openai needs a key. Set "
        "it, or name another one with api_key_env."
    ]
    assert made == plan(home)
    with pytest.raises(ConfigError, match="A_KEY_THAT_IS_NOT_SET is not set"):
        run(home, server)


@pytest.mark.usefixtures("key")
def test_the_first_run_does_what_was_planned_and_the_next_plan_finds_nothing_to_do(
    home: Path, server: WireServer
) -> None:
    made = plan(home)
    assert run(home, server) == said(made)
    assert made.usd == pytest.approx(made.tokens * 5.0 / 1e6, rel=0.02)
    again = plan(home)
    assert set(said(again).values()) == {0}
    assert (again.rows_unchanged, again.usd, again.seconds) == (300, 0, 0)


@pytest.mark.usefixtures("key")
def test_after_edits_every_number_is_what_the_run_then_does(home: Path, server: WireServer) -> None:
    run(home, server)
    edited = [
        (n, f"{title} retold" if n % 10 == 0 else title, cat) for n, title, cat in ROWS if n % 15
    ]
    write_csv(home, "a.csv", edited)
    write_csv(home, "b.csv", [(1_000 + n, f"a song about {n} bears", "song") for n in range(50)])
    made = plan(home)
    assert (made.rows_new, made.rows_changed, made.rows_deleted) == (50, 20, 20)
    assert made.rows_unchanged == 300 - 20 - 20
    assert (made.texts_to_embed, made.requests > 0) == (70, True)
    assert run(home, server) == said(made)
    assert set(said(plan(home)).values()) == {0}


@pytest.mark.usefixtures("key")
def test_duplicates_moved_rows_and_texts_that_are_known_cost_nothing(
    home: Path, server: WireServer
) -> None:
    run(home, server)
    copies = [(2_000 + n, title, "copy") for n, title, _ in ROWS[:100]]
    twins = [(3_000 + n, "one and the same new tale", "twin") for n in range(40)]
    write_csv(home, "b.csv", [*copies, *twins])
    made = plan(home)
    assert (made.rows_new, made.texts_to_embed, made.requests) == (140, 1, 1)
    assert made.cache_hits >= 100
    assert run(home, server) == said(made)


@pytest.mark.usefixtures("key")
def test_a_text_that_was_refused_is_not_planned_again(home: Path, server: WireServer) -> None:
    server.poisoned = lambda text: "I will not." if text == ROWS[5][1] else None
    run(home, server)
    assert set(said(plan(home)).values()) == {0}
    assert plan(home).rows_unchanged == 299


def contents(home: Path) -> dict[str, tuple[bytes, int]]:
    """Every file of the warehouse with its bytes and its time."""
    folder = home / "data" / "warehouse"
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.usefixtures("key")
def test_a_plan_leaves_the_warehouse_byte_for_byte_as_it_was(
    home: Path, server: WireServer
) -> None:
    assert plan(home).rows_new == 300
    assert not (home / "data" / "warehouse").exists()
    run_steps(home, "tales")
    embeddings = run_of(home, "tales").folder.embeddings.folder
    for name in (".b00.114f0438ce32.tmp", "b00-114f0438ce321111.parquet"):
        (embeddings / name).write_bytes(b"of a killed run, for the next one to remove")
    before = contents(home)
    write_csv(home, "b.csv", [("new", "a tale that is new", "x")])
    (home / "data" / "a.csv").unlink()
    changes = plan(home)
    assert (changes.rows_new, changes.rows_deleted) == (1, 300)
    assert contents(home) == before


@pytest.mark.usefixtures("key")
def test_what_stops_a_plan_is_named_where_it_is(home: Path, server: WireServer) -> None:
    run_steps(home, "tales")
    folder = run_of(home, "tales").folder
    (folder.documents.folder / "files.json").write_text("{")
    with pytest.raises(StoreError) as caught:
        plan(home)
    assert str(folder.files) in str(caught.value)
    (folder.documents.folder / "files.json").unlink()
    (home / "data" / "b.csv").write_text("id,title,cat\n" + "too,few\n" * 99)
    with pytest.raises(SourceError, match="Fix the source or raise") as caught:
        plan(home)
    assert "Those of this run" not in str(caught.value)  # a plan keeps nothing


def test_a_plan_trains_no_model(home: Path) -> None:
    train = "model: {provider: word2vec, train: {dimensions: 16, min_count: 1}}\npartitions: 2\n"
    source = "source: {kind: csv, path: 'data/*.csv', id: id, text: [title]}\n"
    write_pipeline(home, "words", source + train)
    write_csv(
        home, "w.csv", [(row, f"word{row % 7} is near word{row % 5}", "x") for row in range(50)]
    )
    changes = plan(home, "words")
    assert (changes.rows_new, changes.cache_hits) == (50, 0)
    assert changes.texts_to_embed == 35
    assert not (home / "data" / "warehouse").exists()


@pytest.mark.usefixtures("key")
def test_the_time_that_is_expected_is_that_of_the_pace_that_was_reached(
    home: Path, server: WireServer
) -> None:
    server.latency_seconds = 0.05
    reports = [
        report.statistics for report in run_steps(home, "tales") if report.step == "embeddings"
    ]
    paces = [
        statistics["tokens_per_second"]
        for statistics in reports
        if statistics.get("tokens_per_second")
    ]
    write_csv(home, "b.csv", [(1_000 + n, f"a song about {n} bears", "song") for n in range(50)])
    made = plan(home)
    assert made.seconds is not None
    assert made.tokens / max(paces) - 0.1 <= made.seconds <= made.tokens / min(paces) + 0.1


def test_a_price_that_nobody_knows_is_none(home: Path, server: WireServer) -> None:
    path = home / "pipelines" / "tales.yaml"
    path.write_text(path.read_text().replace("  usd_per_million_tokens: 5.0\n", ""))
    assert plan(home).usd is None


def test_a_budget_does_not_change_what_would_be_done(home: Path, server: WireServer) -> None:
    without = plan(home)
    write(home, server, "budget: {usd: 0.000001, tokens: 10}\n")
    beyond = plan(home)
    assert (without.within_budget, beyond.within_budget) == (None, False)
    assert dataclasses.replace(beyond, within_budget=None, has_budget=False) == without


@pytest.mark.usefixtures("key")
def test_a_budget_that_suffices_is_told_only_with_a_key(
    home: Path, server: WireServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(home, server, "budget: {usd: 5}\n")
    assert plan(home).within_budget is True
    monkeypatch.delenv("A_KEY_THAT_IS_NOT_SET")
    assert plan(home).within_budget is None


def test_a_local_models_time_is_estimated_by_its_size_and_this_machine(tmp_path: Path) -> None:
    values = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert operations_per_token(tmp_path) == 2 * 6 * (4 * 384**2 + 2 * 384 * 1536)
    (tmp_path / "config.json").write_text("[]")
    assert operations_per_token(tmp_path) is None


@pytest.mark.parametrize("lock", ["run", "step"])
def test_a_pipeline_that_another_process_is_at_work_on_is_not_waited_for(
    home: Path, server: WireServer, lock: str
) -> None:
    plan(home)
    failed: list[BaseException] = []

    def try_it() -> None:
        try:
            plan(home)
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    with Warehouse(home).pipeline("tales").lock(lock):  # type: ignore[arg-type]
        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
    assert isinstance(failed[0], BusyError)
    assert "'tales' is being run by another process" in str(failed[0])


@pytest.mark.usefixtures("key")
def test_what_the_checks_will_ask_for_is_in_the_price(home: Path, server: WireServer) -> None:
    write(home, server, "evaluation: {known_items: 20}\n")
    made = plan(home)
    assert made.usd == pytest.approx((made.tokens + made.tokens_to_check) * 5.0 / 1e6, abs=1e-6)
    assert made.tokens_to_check > 0
    did = run(home, server)
    assert did["texts_to_embed"] > made.texts_to_embed  # with those of the checks
    asked = sum(len(text.split()) for body in server.requests for text in body["input"])
    assert asked <= made.tokens + made.tokens_to_check
    assert plan(home).tokens_to_check == 0  # nothing has changed


def test_a_plan_runs_no_code_of_the_home_folder_unless_it_is_trusted(home: Path) -> None:
    (home / "own.py").write_text(
        "from pathlib import Path\n"
        f"Path({str(home / 'imported')!r}).touch()\n"
        "class Model:\n    dimensions = 2\n"
        "    def embed(self, texts, input_type): return [[1.0, 0.0]] * len(texts)\n"
    )
    text = "source: {kind: csv, path: data/*.csv, id: id, text: [title]}\n"
    model = "model: {{provider: custom, cls: 'own:Model', trusted: {}}}\nevaluation: {{known_items: 0}}\n"
    write_csv(home, "a.csv", [(1, "one", "x"), (2, "two", "y")])
    write_pipeline(home, "own", text + model.format("false"))
    with pytest.raises(ConfigError, match="a plan runs no code that a pipeline file names"):
        plan(home, "own")
    assert not (home / "imported").exists()
    write_pipeline(home, "own", text + model.format("true"))
    assert plan(home, "own").rows_new == 2
    assert (home / "imported").exists()


@pytest.mark.usefixtures("key")
def test_a_plan_writes_nothing_into_the_home_and_removes_what_killed_plans_left(
    home: Path, server: WireServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(home, server)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / "embedding-pipelines-copy-left"
    (left / "tales").mkdir(parents=True)
    write_csv(home, "b.csv", [(1_000, "a song about bears", "song")])

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as read_only:
        read_only.setattr("filelock.FileLock.acquire", refuse)
        read_only.setattr("embedding_pipelines.storage.warehouse.FileLock", refuse)
        assert plan(home).rows_new == 1
    assert list(tmp_path.glob("embedding-pipelines-copy-*")) == []
