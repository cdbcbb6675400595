"""migrate: two lines are kept up while searches go on, one pointer moves, and either way back leaves
what it should; whatever is killed in between."""

import threading
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding_pipelines import migrate
from embedding_pipelines.doctor.examine import examine
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.errors import ConfigError, ReleaseError
from embedding_pipelines.files import write_json
from embedding_pipelines.forget.forget import forget
from embedding_pipelines.orchestration.launch import _to_force, _to_retry
from embedding_pipelines.plan import plan
from embedding_pipelines.progress import Silent
from embedding_pipelines.providers.hashing import HashingModel
from embedding_pipelines.releases import Releases, live_release, read_releases, rollback
from embedding_pipelines.report.page import write_report
from embedding_pipelines.search import Searcher
from embedding_pipelines.serving.bundle import write_bundle
from embedding_pipelines.serving.client import EmbeddingPipelines
from embedding_pipelines.serving.wire import SearchAnswer
from embedding_pipelines.spec.load import find_file, find_pipeline, read_draft
from embedding_pipelines.status import pipeline_status
from embedding_pipelines.steps.chain import steps_of
from embedding_pipelines.steps.embeddings import RETRY, rejected_texts
from embedding_pipelines.steps.garbage import find_garbage
from embedding_pipelines.steps.old_line import OldLineStep, lines_of
from embedding_pipelines.steps.release import FORCE
from embedding_pipelines.storage.warehouse import PipelineFolder, Warehouse
from embedding_pipelines_tests.chain import copy_home, run_of, write_csv, write_pipeline
from embedding_pipelines_tests.serving.processes import serving

PIPELINE = """\
source: {kind: csv, path: data/a.csv, id: id, text: [title]}
# small
model: {provider: hashing, dimensions: 64}
partitions: 1
evaluation:
  known_items: 4
  may_shrink: 1
  checks: {provider_is_unchanged: off, vectors_belong_to_their_texts: off, input_types_differ: off}
"""
NEW = "{provider: hashing, dimensions: 128}"
ANIMALS = ["fox", "owl", "elk", "hen", "cat"]
LAG_SECONDS = 20.0  # at most, until a server on a busy machine answers from a new release
MIGRATING = PIPELINE.replace("64}", "128}").replace(
    "partitions", "migration: {old_model: {provider: hashing, dimensions: 64}}\npartitions"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("built")
    write_pipeline(home, "tales", PIPELINE)
    write(home, "fox")
    run(home)
    return home


@pytest.fixture
def tales(built: Path, home: Path) -> Path:
    """A released pipeline of twelve tales."""
    return copy_home(built, home)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[int, str, str]]:
    """How often a model was sent a text: by its dimensions, the input type and the text."""
    counter, embed = Counter[tuple[int, str, str]](), HashingModel.embed

    def counting(model: Any, inputs: Any, input_type: Any) -> Any:
        counter.update((model.space.dimensions, input_type, text) for text in inputs)
        return embed(model, inputs, input_type)

    monkeypatch.setattr(HashingModel, "embed", counting)
    return counter


def tale(number: int, animal: str = "fox") -> str:
    return f"tale {number} of the {animal} name{number * 31 % 997} in town{number * 7 % 211}."


def write(home: Path, animal: str) -> None:
    """Twelve tales, of which the third is of an animal."""
    write_csv(home, "a.csv", [(n, tale(n, animal if n == 3 else "fox"), "") for n in range(12)])


def run(home: Path) -> None:
    with run_of(home, "tales") as whole:
        for step in steps_of(whole.spec):
            for _ in step.work(whole, whole.spec.partition_names):
                pass


def folder_of(home: Path) -> PipelineFolder:
    return Warehouse(home).pipeline("tales")


def releases_of(home: Path) -> Releases:
    return read_releases(folder_of(home))


def contents(home: Path) -> dict[str, bytes]:
    """Every file of the warehouse but locks, what all pipelines share, and the history, which has
    whatever was tried."""
    root, shared = Warehouse(home).root, ("cache.sqlite", "canaries", "forgotten")
    return {
        name: path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
        and not (name := path.relative_to(root).as_posix()).startswith(shared)
        and not name.endswith((".lock", "history.jsonl", "usage.json"))
    }


def first(home: Path, animal: str) -> tuple[int, str]:
    """The release and the text that a search for the third tale finds."""
    with Searcher(home, "tales") as searcher:
        result = searcher.search(tale(3, animal), k=1)
        return result.release, result.hits[0].text


def phase_of(home: Path) -> migrate.MigrationStatus:
    with run_of(home, "tales") as now:
        return migrate.status(now)


def cut_over(home: Path) -> int:
    with run_of(home, "tales") as now:
        return migrate.cut_over(now)[1].number


def test_both_lines_are_kept_up_through_cutover_and_rollback(
    tales: Path, sent: Counter[tuple[int, str, str]]
) -> None:
    file = (tales / "pipelines/tales.yaml").read_bytes()
    assert migrate.start(tales, "tales", NEW).migration is not None
    assert (tales / "pipelines/tales.yaml").read_text() == MIGRATING
    run(tales)
    assert releases_of(tales).live == 1
    status = phase_of(tales)
    assert (status.phase, status.old_release, status.new_release) == ("ready", 1, 2)
    assert (status.embedded_partitions, status.partitions) == (1, 1)
    assert all(each.low <= each.new - each.old <= each.high for each in status.changes)
    assert "known_item_mrr" in {each.metric for each in status.changes}

    write(tales, "owl")
    run(tales)  # the old line is released anew, the new one waits
    assert first(tales, "owl") == (3, tale(3, "owl"))
    assert releases_of(tales).previous(3) == releases_of(tales).get(1)  # never the other line's
    assert cut_over(tales) == 4
    assert first(tales, "owl") == (4, tale(3, "owl"))
    with pytest.raises(ReleaseError, match="read the new line already"):
        cut_over(tales)

    write(tales, "elk")
    run(tales)
    status = phase_of(tales)
    assert (status.phase, status.live_release) == ("cut over", status.new_release)
    assert first(tales, "elk")[1] == tale(3, "elk")
    with pytest.raises(
        ReleaseError, match=rf"rollback tales --to {status.old_release}`, then abort"
    ):
        migrate.abort(tales, "tales", Silent())
    rollback(folder_of(tales), status.old_release)
    assert first(tales, "elk") == (status.old_release, tale(3, "elk"))  # kept up

    write(tales, "fox")
    run(tales)  # does not undo the rollback
    assert live_release(folder_of(tales)).line == ""
    kept = contents(tales)
    assert len(migrate.abort(tales, "tales", Silent())) == 1
    now = contents(tales)
    assert {name: kept[name] for name in now if "releases" not in name} == {
        name: content for name, content in now.items() if "releases" not in name
    }
    assert not [name for name in now if "new_line/" in name]
    assert len([name for name in now if name.endswith(".checksums.json")]) == 1
    assert (tales / "pipelines/tales.yaml").read_bytes() == file
    assert max(sent[each] for each in sent if each[1] == "document") == 1  # nothing twice


def test_abort_leaves_the_old_line_byte_for_byte_and_nothing_of_the_new_one(tales: Path) -> None:
    run(tales)  # a copy's files have times of their own
    before, file = contents(tales), (tales / "pipelines/tales.yaml").read_bytes()
    migrate.start(tales, "tales", NEW)
    run(tales)
    assert contents(tales) != before
    migrate.abort(tales, "tales", Silent())
    assert contents(tales) == before
    assert (tales / "pipelines/tales.yaml").read_bytes() == file
    with pytest.raises(ConfigError, match="does not migrate"):
        migrate.abort(tales, "tales", Silent())


def test_finish_puts_the_new_line_in_place_of_the_old_one(
    tales: Path, sent: Counter[tuple[int, str, str]]
) -> None:
    migrate.start(tales, "tales", NEW)
    with pytest.raises(ReleaseError, match="cutover` first, or abort"):
        migrate.finish(tales, "tales", Silent())
    run(tales)
    cut_over(tales)
    sent.clear()
    assert len(migrate.finish(tales, "tales", Silent())) == 1
    assert find_pipeline("tales", tales).migration is None
    assert not folder_of(tales).new_line.exists()
    with run_of(tales, "tales") as now:
        assert all(step.whole(now) is not None for step in steps_of(now.spec))
        assert find_garbage(now) == []
    write(tales, "owl")
    run(tales)
    assert first(tales, "owl") == (3, tale(3, "owl"))
    assert [each for each in sent if each[1] == "document"] == [(128, "document", tale(3, "owl"))]
    migrate.start(tales, "tales", "{provider: hashing, dimensions: 32}")  # and again
    run(tales)
    assert cut_over(tales) == 4


@pytest.mark.parametrize("end", ["finish", "abort"])
def test_an_end_that_is_killed_anywhere_leaves_searches_right_and_is_gone_on_with(
    tales: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    migrate.start(tales, "tales", NEW)
    run(tales)
    if end == "finish":
        cut_over(tales)
    line = live_release(folder_of(tales)).table
    names = ("_move_into_place", "_edited", "write_releases", "_drop", "write_json")
    for name in [name for name in names if end == "finish" or name not in names[::4]]:
        with monkeypatch.context() as patch:
            patch.setattr(migrate, name, _kill)
            with pytest.raises(KeyboardInterrupt):
                getattr(migrate, end)(tales, "tales", Silent())
        assert first(tales, "fox")[1] == tale(3)
        assert live_release(folder_of(tales)).table == line
    getattr(migrate, end)(tales, "tales", Silent())
    assert find_pipeline("tales", tales).migration is None
    run(tales)
    assert live_release(folder_of(tales)).table == line
    assert [entry.line for entry in releases_of(tales).releases] == [""]
    assert not folder_of(tales).new_line.exists()


def test_a_run_between_a_killed_finish_and_the_next_one_stays_live(
    tales: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate.start(tales, "tales", NEW)
    run(tales)
    cut_over(tales)
    old = phase_of(tales).old_release
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "write_releases", _kill)  # the file says no migration any more
        with pytest.raises(KeyboardInterrupt):
            migrate.finish(tales, "tales", Silent())
    write(tales, "owl")
    run(tales)
    live = live_release(folder_of(tales)).number
    rollback(folder_of(tales), old)
    for end in (migrate.finish, migrate.abort):  # neither drops what searches read
        with pytest.raises(ReleaseError, match=r"rollback tales --to 2`"):
            end(tales, "tales", Silent())
    rollback(folder_of(tales), live)
    migrate.finish(tales, "tales", Silent())
    assert first(tales, "owl") == (live, tale(3, "owl"))
    assert old not in [entry.number for entry in releases_of(tales).releases]


def test_a_plan_has_what_both_lines_cost_and_doctor_looks_at_both(tales: Path) -> None:
    migrate.start(tales, "tales", NEW)
    with run_of(tales, "tales") as now:
        assert plan(now).texts_to_embed == 12
    run(tales)
    write(tales, "owl")
    with run_of(tales, "tales") as now:
        result = plan(now)
        assert (result.texts_to_embed, result.rows_changed) == (2, 1)
        draft = read_draft(find_file("tales", tales))
        before = {each.what: each for each in examine(draft, now.warehouse)}
        assert [each for each in before.values() if not each.is_well] == []
        (shard,) = folder_of(tales).embeddings.folder.glob("b*.parquet")
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")
        assert not {each.what: each for each in examine(draft, now.warehouse)}["rows"].is_well


def test_a_bundle_of_a_pipeline_that_migrates_can_be_served_and_nothing_else(
    tales: Path, tmp_path: Path
) -> None:
    migrate.start(tales, "tales", NEW)
    run(tales)
    cut_over(tales)
    description = write_bundle(Warehouse(tales), "tales", tmp_path / "tales")
    assert (description.release, description.has_shards) == (2, False)
    own = tmp_path / "tales" / "home"
    assert first(own, "fox") == (2, tale(3))
    assert live_release(folder_of(own)).line == ""
    assert not (own / "pipelines").exists()


def _kill(*arguments: Any, **options: Any) -> Any:
    raise KeyboardInterrupt


def test_a_cutover_waits_for_what_the_old_line_holds_and_for_the_checks(
    tales: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate.start(tales, "tales", NEW)
    with pytest.raises(ReleaseError, match="cannot be cut over: the new line is not filled yet"):
        cut_over(tales)
    run(tales)
    write(tales, "owl")
    with run_of(tales, "tales") as now:  # the run dies after the old line
        for step in steps_of(now.spec):
            if step.name == "old_line":
                list(step.work(now, []))
    assert first(tales, "owl")[1] == tale(3, "owl")
    with pytest.raises(ReleaseError, match="different states of the source"):
        cut_over(tales)
    monkeypatch.setattr(migrate, "rollback", _kill)  # between the record and the pointer
    run(tales)
    with pytest.raises(KeyboardInterrupt):
        cut_over(tales)
    assert phase_of(tales).phase == "ready"
    assert live_release(folder_of(tales)).line == ""


def test_the_old_line_is_left_alone_once_its_time_is_over(tales: Path) -> None:
    migrate.start(tales, "tales", NEW)
    run(tales)
    cut_over(tales)
    old = phase_of(tales).old_release
    at = datetime.now(UTC) - timedelta(days=8)
    write_json(folder_of(tales).cutover, {"at": at.isoformat()})
    write(tales, "owl")
    run(tales)
    status = phase_of(tales)
    assert (status.phase, status.old_release) == ("over", old)
    assert "finish` drops the old line" in status.next_step
    assert first(tales, "owl")[1] == tale(3, "owl")


@pytest.mark.parametrize("is_over", [False, True])
def test_what_is_forgotten_leaves_both_lines(tales: Path, is_over: bool) -> None:
    write(tales, "walrus")
    migrate.start(tales, "tales", NEW)
    run(tales)
    if is_over:
        cut_over(tales)
    with run_of(tales, "tales") as now:
        receipt = forget(now, ["3"], [])
        keys = [
            EmbeddingCache.key(each, "document", tale(3, "walrus"))
            for each in {entry.space.with_codec(None).id for entry in releases_of(tales).releases}
        ]
        assert now.cache.get_many(keys, 64) == {}
    assert receipt.left == []
    run(tales)
    for content in contents(tales).values():
        assert b"walrus" not in content
    assert {entry.line for entry in releases_of(tales).releases} == {"", "new_line"}
    assert first(tales, "fox")[1] != tale(3, "walrus")


def test_nothing_is_forgotten_beside_what_a_migration_has_left(tales: Path) -> None:
    """Whose texts may be cut otherwise, so that no look for them would tell."""
    migrate.start(tales, "tales", NEW)
    run(tales)
    write_pipeline(tales, "tales", PIPELINE)
    with run_of(tales, "tales") as now:
        with pytest.raises(ConfigError, match="Say `embedding-pipelines migrate tales abort`"):
            forget(now, ["3"], [])
        migrate.abort(tales, "tales", Silent())
        assert forget(now, ["3"], []).left == []


def test_a_start_names_what_is_wrong_with_its_model(tales: Path) -> None:
    before = (tales / "pipelines/tales.yaml").read_bytes()
    for model, words in (
        ("minlm", "^The model minlm: 'minlm' is no known alias. Did you mean 'minilm'[^\n]*$"),
        ("{provider: hashing", "^The model {provider: hashing"),
        ("{provider: hashing, dimensions: 64}", "has the model {provider.*} already. Name another"),
    ):
        with pytest.raises(ConfigError, match=words):
            migrate.start(tales, "tales", model)
    assert (tales / "pipelines/tales.yaml").read_bytes() == before


def test_a_start_is_refused_for_a_model_that_does_not_fit_the_file(tales: Path) -> None:
    cut = "compression: [{kind: pca, dimensions: 32}]\n"
    write_pipeline(tales, "tales", PIPELINE + cut)
    before = (tales / "pipelines/tales.yaml").read_bytes()
    for model, words in (
        (
            "{provider: hashing, dimensions: 16}",
            "^compression.pca: 32 dimensions cannot be made of 16",
        ),
        ("{provider: hashing, max_tokens: 40}", "^preprocessing.chunk.overlap: 32 tokens are more"),
        ("hf:./models/none", "there is no folder"),
    ):
        with pytest.raises(ConfigError, match=words):
            migrate.start(tales, "tales", model)
    assert (tales / "pipelines/tales.yaml").read_bytes() == before
    migrate.start(tales, "tales", NEW)  # which fits


def test_a_start_is_refused_where_the_file_says_the_dimensions_of_the_model_before(
    tales: Path,
) -> None:
    write_pipeline(tales, "tales", PIPELINE + "output_dim: 64\n")
    before = (tales / "pipelines/tales.yaml").read_bytes()
    with pytest.raises(ConfigError, match=r"gives 128 in place of the 64 .* Take output_dim out"):
        migrate.start(tales, "tales", NEW)
    assert (tales / "pipelines/tales.yaml").read_bytes() == before
    cut = "compression: [{kind: truncate, dimensions: 32}]\noutput_dim: 32\n"
    write_pipeline(tales, "tales", PIPELINE + cut)  # which is right of both
    assert migrate.start(tales, "tales", NEW).output_dim == 32


def test_a_start_needs_a_release_and_one_migration_at_a_time(home: Path) -> None:
    write_pipeline(home, "tales", PIPELINE)
    write(home, "fox")
    with pytest.raises(ReleaseError, match="has no release yet"):
        migrate.start(home, "tales", NEW)
    with run_of(home, "tales") as now, pytest.raises(ConfigError, match="start --to MODEL"):
        migrate.status(now)
    write_pipeline(home, "tales", MIGRATING)
    with pytest.raises(ConfigError, match="migrates already"):
        migrate.start(home, "tales", NEW)
    write_pipeline(home, "tales", MIGRATING.replace("128}", "64}", 1))
    with pytest.raises(ConfigError, match="old_model is the model itself"):
        find_pipeline("tales", home)


def test_what_is_held_back_of_either_line_can_be_released_with_a_reason(tales: Path) -> None:
    migrate.start(tales, "tales", NEW)
    run(tales)
    write_csv(tales, "a.csv", [(n, tale(n), "") for n in range(10)])
    file = tales / "pipelines/tales.yaml"
    file.write_text(file.read_text().replace("may_shrink: 1", "may_shrink: 0.1"))
    with pytest.raises(ReleaseError, match="failed not_worse_than_live"):
        run(tales)
    with run_of(tales, "tales") as now:
        held_back = pipeline_status(now.spec, now.warehouse)["held_back"]
        assert "not_worse_than_live" in held_back
        assert _to_force(now.spec, now.warehouse, "right") == (
            ["old_line"],
            {"old_line": {FORCE: "right"}},
        )
        for _ in OldLineStep().work(now, [], {FORCE: "right"}):
            pass
        assert (live_release(now.folder).rows, live_release(now.folder).forced) == (10, "right")
    run(tales)  # the new line is compared with what is live now
    assert phase_of(tales).phase == "ready"
    with run_of(tales, "tales") as now:
        names, config = _to_force(now.spec, now.warehouse, "right")
        assert (names, config) == (["release"], {"release": {FORCE: "right"}})


def test_rejected_texts_of_both_lines_are_sent_again(
    tales: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = HashingModel.embed

    def rejecting(model: Any, inputs: Any, input_type: Any) -> Any:
        refused = {at: "not now" for at, text in enumerate(inputs) if "owl" in text}
        response = embed(model, inputs, input_type)
        response.vectors[list(refused)] = np.nan
        return replace(response, rejected=refused)

    migrate.start(tales, "tales", NEW)
    write(tales, "owl")
    with monkeypatch.context() as patch:
        patch.setattr(HashingModel, "embed", rejecting)
        run(tales)
    with run_of(tales, "tales") as now:
        assert [rejected_texts(line) for line in lines_of(now)] == [1, 1]
        names, config = _to_retry(now.spec, now.warehouse)
        assert config == {"embeddings": {RETRY: True}, "old_line": {RETRY: True}}
        assert names[:2] == ["old_line", "embeddings"]
        for step in steps_of(now.spec):
            if step.name in (*names, "checks"):  # which Dagster runs with the table
                for _ in step.work(now, now.spec.partition_names, config.get(step.name)):
                    pass
        assert [rejected_texts(line) for line in lines_of(now)] == [0, 0]
    assert first(tales, "owl")[1] == tale(3, "owl")


def test_after_the_cutover_the_report_reads_what_the_new_line_has_rejected(tales: Path) -> None:
    migrate.start(tales, "tales", NEW)
    run(tales)
    assert "rolled back" not in page_of(tales)  # the new line waits
    cut_over(tales)
    with run_of(tales, "tales") as now:
        columns = {"file": ["a.csv"], "row": [9], "reason": ["of the new line"], "raw": [b"x"]}
        pq.write_table(pa.table(columns), now.folder.rejected)
    assert "of the new line" in page_of(tales)


def page_of(home: Path) -> str:
    return write_report(Warehouse(home), "tales", Silent()).path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_migration_under_load_answers_every_query_with_what_was_released(
    tales: Path, sent: Counter[tuple[int, str, str]]
) -> None:
    """A reader searches all the while; edits, runs, cutover, rollback and abort go on."""
    animals = ANIMALS
    done, problems, answers = [0], list[str](), Counter[int]()
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            oldest = done[0]
            try:
                release, text = first(tales, animals[oldest])
            except Exception as error:  # noqa: BLE001  # any is a query without an answer
                problems.append(repr(error))
                return
            answers[release] += 1
            if text not in [tale(3, animal) for animal in animals[oldest:]]:
                problems.append(f"{text} after {animals[oldest]}")
            time.sleep(0.01)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        migrate.start(tales, "tales", NEW)
        for number in range(1, len(animals)):
            write(tales, animals[number])
            run(tales)
            done[0] = number
            if number == 2:
                cut_over(tales)
        rollback(folder_of(tales), phase_of(tales).old_release)
        migrate.abort(tales, "tales", Silent())
        time.sleep(0.1)
    finally:
        is_over.set()
        reader.join()
    assert problems == []
    assert len(answers) >= 4  # of both lines
    assert max(sent[each] for each in sent if each[1] == "document") == 1


class Asking:
    """Threads that ask a server for the third tale, again and again, without a second try. An answer
    is stale if a newer one was given before its query was sent."""

    def __init__(self, address: str) -> None:
        self.answers, self.problems = Counter[tuple[int, int]](), list[str]()
        self._address, self._is_over, self._newest = address, threading.Event(), 0
        self._threads = [threading.Thread(target=self._ask) for _ in range(2)]

    def __enter__(self) -> "Asking":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        texts = [tale(3, animal) for animal in ANIMALS]
        with EmbeddingPipelines("", self._address, retries=0) as client:
            while not self._is_over.is_set():
                newest = self._newest
                try:
                    answer = client.search("tales", texts[newest], 1)
                    assert isinstance(answer, SearchAnswer)  # of one query
                    which = texts.index(answer.hits[0].text)
                except Exception as error:  # noqa: BLE001  # any is a query without an answer
                    self.problems.append(repr(error))
                    continue
                self.answers[answer.release, which] += 1
                if which < newest:
                    self.problems.append(f"{which} after {newest}")
                self._newest = max(self._newest, which)
                time.sleep(0.005)

    def wait_for(self, release: int | None, which: int) -> None:
        """Until the server answers from a release, with a tale that nobody asked for before."""
        end = time.monotonic() + LAG_SECONDS
        while not self.answers[release or 0, which]:
            assert time.monotonic() < end, (release, which, self.answers, self.problems)
            time.sleep(0.02)


@pytest.mark.slow
def test_a_server_answers_every_query_while_its_pipeline_migrates_and_documents_change(
    tales: Path, sent: Counter[tuple[int, str, str]]
) -> None:
    run(tales)
    with serving(tales) as address, Asking(address) as asking:
        asking.wait_for(1, 0)
        migrate.start(tales, "tales", NEW)
        for number, animal in enumerate(ANIMALS[1:], 1):
            write(tales, animal)
            run(tales)
            asking.wait_for(releases_of(tales).live, number)
            if number == 2:
                asking.wait_for(cut_over(tales), number)
        old = phase_of(tales).old_release
        rollback(folder_of(tales), old)
        asking.wait_for(old, len(ANIMALS) - 1)
        kept = contents(tales)
        migrate.abort(tales, "tales", Silent())
        now = contents(tales)
        before = asking.answers.total()
        while asking.answers.total() < before + 20 and not asking.problems:
            time.sleep(0.02)
    assert asking.problems == []
    assert {release for release, _ in asking.answers} > {1, old}
    assert {
        name: content for name, content in kept.items() if name in now and "releases" not in name
    } == {name: content for name, content in now.items() if "releases" not in name}
    assert not [name for name in now if "new_line/" in name]
    assert max(sent[each] for each in sent if each[1] == "document") == 1
