"""Batches from submission to table: through kills, reboots and a service that fails, nothing is
paid for twice."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from embedding_pipelines.embedding import request as request_module
from embedding_pipelines.embedding.batch_jobs import BatchJobs, BatchPending
from embedding_pipelines.embedding.budget import BudgetTracker
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.embedding.request import ATTEMPTS
from embedding_pipelines.errors import BudgetError, ProviderError, StoreError
from embedding_pipelines.files import read_json, write_json
from embedding_pipelines.plan import plan
from embedding_pipelines.progress import StepReport
from embedding_pipelines.providers import _openai_batch
from embedding_pipelines.providers.openai import Openai
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.spec.pipeline import Budget
from embedding_pipelines.steps.chain import step_named
from embedding_pipelines_tests.chain import (
    live_rows,
    run_of,
    run_steps,
    top,
    write_csv,
    write_pipeline,
)
from embedding_pipelines_tests.conftest import UNMEASURED
from embedding_pipelines_tests.providers.batch_service import BatchServer, Fault, serve_batches

KEY = "sk-not-to-be-seen-0123456789"
DIMENSIONS = 32
ANIMALS = [(f"a{n}", f"animal number {n} of the zoo", "zoo") for n in range(12)]
TEXTS = {title for _, title, _ in ANIMALS}
ODD = "animal number 3 of the zoo"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_KEY", KEY)
    monkeypatch.setattr(request_module, "FIRST_WAIT_SECONDS", 0.001)


@pytest.fixture
def server() -> Iterator[BatchServer]:
    with serve_batches(DIMENSIONS, KEY) as running:
        yield running


def pipeline(
    home: Path, server: BatchServer, name: str = "zoo", more: str = "", key_env: str = "ZOO_KEY"
) -> None:
    """A pipeline file whose model answers later."""
    options = (
        f"base_url: '{server.url}', model: my-model, dimensions: {DIMENSIONS}, "
        f"api_key_env: {key_env}, mode: batch"
    )
    write_pipeline(
        home,
        name,
        f"source: {{kind: csv, path: 'data/{name}*.csv', id: id, text: [title], metadata: [cat]}}\n"
        f"model: {{provider: openai, {options}}}\n"
        f"partitions: 2\n{UNMEASURED}{more}",
    )


@pytest.fixture
def zoo(home: Path, server: BatchServer) -> Path:
    """A home with a pipeline `zoo` of twelve texts."""
    pipeline(home, server)
    write_csv(home, "zoo.csv", ANIMALS)
    return home


def embedded(
    home: Path, name: str = "zoo", partitions: Sequence[str] | None = None
) -> list[StepReport]:
    """A run up to the embeddings, of some partitions or all, with all objects new, as another
    process has them."""
    with run_of(home, name) as run:
        every = run.spec.partition_names
        for step, names in (
            ("documents", every),
            ("chunks", every),
            ("embeddings", every if partitions is None else partitions),
        ):
            reports = list(step_named(step).work(run, names))
        return reports


def batches_of(texts: int, zoo: Path) -> None:
    """From now on no batch of the pipeline holds more."""
    path = zoo / "pipelines" / "zoo.yaml"
    path.write_text(path.read_text().replace("mode: batch", f"mode: batch, batch_texts: {texts}"))


def waits(home: Path, name: str = "zoo") -> str:
    """What a run says that has to wait."""
    with pytest.raises(BatchPending) as caught:
        embedded(home, name)
    return str(caught.value)


def vectors(home: Path, name: str = "zoo") -> dict[str, Any]:
    """The vector of each text; None if it was refused."""
    context = run_of(home, name)
    found: dict[str, Any] = {}
    for partition in context.spec.partition_names:
        texts = context.folder.chunks.read_columns(partition, ["text"])
        rows = context.folder.embeddings.read_columns(partition, [VECTOR])
        assert texts is not None
        assert rows is not None
        found.update(zip(texts["text"].to_pylist(), rows[VECTOR].to_pylist(), strict=True))
    return found


def check_vectors(
    home: Path, server: BatchServer, texts: set[str] = TEXTS, name: str = "zoo"
) -> None:
    found = vectors(home, name)
    assert {text for text, row in found.items() if row is not None} == texts
    for text in texts:
        np.testing.assert_allclose(found[text], server.vector(text), atol=1e-6)


def records(home: Path) -> list[dict[str, Any]]:
    """The files of batches in the warehouse."""
    found = sorted((home / "data" / "warehouse" / "batch_jobs").glob("*.json"))
    return [read_json(path) for path in found]


def noted(home: Path) -> set[str]:
    """The tags of the batches for whose end the sensor asks for a run."""
    path = run_of(home, "zoo").folder.batch_jobs
    return set(json.loads(path.read_text())["batches"]) if path.exists() else set()


def tags(home: Path) -> set[str]:
    return {record["tag"] for record in records(home)}


def rejected(home: Path) -> dict[str, str]:
    path = run_of(home, "zoo").folder.rejected_texts
    return (
        {row["text"]: row["reason"] for row in pq.read_table(path).to_pylist()}
        if path.exists()
        else {}
    )


def opened(home: Path, cache: EmbeddingCache, **options: Any) -> BatchJobs:
    run = run_of(home, "zoo")
    return BatchJobs(run.warehouse.batch_jobs, run.model, cache, "document", **options)


def test_texts_are_submitted_once_awaited_collected_and_released(
    zoo: Path, server: BatchServer
) -> None:
    said = waits(zoo)
    assert said.startswith("12 texts are in 1 batch job since 20")
    assert "0 of them done" in said
    assert waits(zoo) == said
    assert (server.asked["upload"], server.asked["create"], server.asked["embed"]) == (1, 1, 0)
    server.finish_all()
    reports = run_steps(zoo, "zoo")
    assert reports[-1].step == "release"
    check_vectors(zoo, server)
    assert set(server.billed) == TEXTS
    assert set(server.billed.values()) == {1}
    assert not server.direct
    assert not records(zoo)
    assert len(live_rows(zoo, "zoo")) == 12
    assert top(zoo, "zoo", "animal number 7 of the zoo") == ["a7"]
    assert server.direct == ["animal number 7 of the zoo"]  # a query is asked at once
    assert server.keys == {f"Bearer {KEY}"}


def test_a_line_is_a_request_as_documented(zoo: Path, server: BatchServer) -> None:
    waits(zoo)
    (batch,) = server.batches.values()
    assert batch.shown["status"] == "in_progress"
    assert (batch.shown["endpoint"], batch.shown["completion_window"]) == ("/v1/embeddings", "24h")
    bodies = [line["body"] for line in batch.lines]
    assert {body["input"][0] for body in bodies} == TEXTS
    assert all(
        body | {"input": 0} == {"model": "my-model", "input": 0, "encoding_format": "base64"}
        for body in bodies
    )
    assert batch.shown["metadata"] == {"embedding_pipelines": records(zoo)[0]["tag"]}
    assert KEY not in json.dumps(records(zoo))


def test_only_new_texts_are_submitted_when_files_change(zoo: Path, server: BatchServer) -> None:
    waits(zoo)
    server.finish_all()
    run_steps(zoo, "zoo")
    write_csv(
        zoo, "zoo_more.csv", [("b1", "a new animal, with a caf\u00e9 and a \u2028 in it", "zoo")]
    )
    assert waits(zoo).startswith("1 text is")
    assert len(live_rows(zoo, "zoo")) == 12
    write_csv(zoo, "zoo_last.csv", [("b2", "another new animal", "zoo")])
    assert waits(zoo).startswith("2 texts are in 2 batch jobs")
    server.finish_all()
    run_steps(zoo, "zoo")
    assert len(live_rows(zoo, "zoo")) == 14
    assert set(server.billed.values()) == set(server.submitted().values()) == {1}


RUN = """
from pathlib import Path
import os
from embedding_pipelines.embedding.batch_jobs import BatchPending
from embedding_pipelines_tests.embedding.test_batch_jobs import embedded
try:
    print(len(embedded(Path(os.environ["EMBEDDING_PIPELINES_HOME"]))))
except BatchPending as waiting:
    print(waiting)
"""


def elsewhere() -> str:
    """A run in a process of its own."""
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_another_process_collects_what_one_submitted(zoo: Path, server: BatchServer) -> None:
    assert elsewhere().startswith("12 texts are in 1 batch job")
    assert elsewhere().startswith("12 texts are in 1 batch job")
    server.finish_all()
    assert elsewhere() == "2"
    check_vectors(zoo, server)
    assert server.asked["create"] == 1
    assert set(server.billed.values()) == {1}


@pytest.mark.parametrize("step", ["upload", "create"])
def test_a_process_killed_while_it_submits_is_made_up_for(
    zoo: Path, server: BatchServer, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed within the request, before it is heard (upload) or after (create)."""
    process: list[subprocess.Popen[bytes]] = []
    done: Callable[..., Any] = getattr(server, step)

    def killing(*arguments: Any) -> Any:
        made = done(*arguments)
        os.kill(process[0].pid, signal.SIGKILL)
        process[0].wait()
        return made

    monkeypatch.setattr(server, step, killing)
    with server.lock:
        process.append(subprocess.Popen([sys.executable, "-c", RUN]))
    process[0].wait(60)
    assert process[0].returncode == -signal.SIGKILL
    monkeypatch.undo()
    monkeypatch.setenv("ZOO_KEY", KEY)
    monkeypatch.setenv("EMBEDDING_PIPELINES_HOME", str(zoo))
    (record,) = records(zoo)
    assert record["id"] is None
    waits(zoo)
    assert len(server.batches) == 1
    server.finish_all()
    embedded(zoo)
    check_vectors(zoo, server)
    assert set(server.billed.values()) == {1}


def test_a_batch_is_found_by_its_tag_though_others_came_after_it(
    zoo: Path, server: BatchServer
) -> None:
    waits(zoo)
    (record,) = records(zoo)
    path = zoo / "data" / "warehouse" / "batch_jobs" / f"{record['tag']}.json"
    write_json(path, {**record, "id": None})
    (stored,) = server.batches.values()
    for number in range(5):
        shown = {
            **stored.shown,
            "id": f"other_{number}",
            "metadata": None if number % 2 else {"by": "them"},
        }
        server.batches[f"other_{number}"] = type(stored)(shown, [])
    server.page_size = 2
    waits(zoo)
    assert server.asked["list"] == 3
    assert records(zoo) == [record]
    assert server.asked["create"] == 1


def test_what_was_never_submitted_and_is_not_found_is_submitted(
    zoo: Path, server: BatchServer
) -> None:
    waits(zoo)
    server.batches.clear()
    (record,) = records(zoo)
    path = zoo / "data" / "warehouse" / "batch_jobs" / f"{record['tag']}.json"
    write_json(path, {**record, "id": None})
    waits(zoo)
    assert len(server.batches) == 1
    assert records(zoo)[0]["tag"] != record["tag"]


@pytest.mark.parametrize("fate", ["refused", "broken", "empty", "nan", "zero", "short"])
def test_a_text_without_a_right_vector_is_asked_for_directly_once_and_the_others_land(
    zoo: Path, server: BatchServer, fate: str
) -> None:
    server.fate = lambda text: fate if text == ODD else None
    server.refuses = lambda text: text == ODD
    waits(zoo)
    server.finish_all()
    reports = embedded(zoo)
    assert server.direct.count(ODD) == 1
    check_vectors(zoo, server, TEXTS - {ODD})
    assert "answered 400: It is not to be said." in rejected(zoo)[ODD]
    assert sum(report.statistics["rejected"] for report in reports) == 1
    assert {text: count for text, count in server.submitted().items() if count > 1} == {}


def test_a_text_that_only_the_batch_refused_gets_its_vector(zoo: Path, server: BatchServer) -> None:
    server.fate = lambda text: "broken" if text == ODD else None
    waits(zoo)
    server.finish_all()
    embedded(zoo)
    check_vectors(zoo, server)
    assert set(server.billed.values()) == {1}
    assert server.direct.count(ODD) == 1


def test_a_refused_text_does_not_go_into_another_batch_while_the_rest_is_awaited(
    zoo: Path, server: BatchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches_of(5, zoo)
    server.fate = lambda text: "refused" if text == ODD else None
    server.refuses = lambda text: text == ODD
    waits(zoo)
    refusing = [name for name in server.out if ODD in server.batches[name].texts()]
    server.finish(refusing[0])
    waits(zoo)
    waits(zoo)
    server.finish_all()
    embedded(zoo)
    assert server.submitted()[ODD] == 1
    assert list(rejected(zoo)) == [ODD]
    check_vectors(zoo, server, TEXTS - {ODD})


@pytest.mark.parametrize("fate", ["lost", "unnamed", "junk", "stranger"])
def test_lost_texts_are_submitted_again_and_the_others_land(
    zoo: Path, server: BatchServer, fate: str
) -> None:
    lost = {ODD, "animal number 8 of the zoo"}
    server.fate = lambda text: fate if text in lost else None
    waits(zoo)
    server.finish_all()
    if fate == "lost":
        assert next(iter(server.batches.values())).shown["status"] == "expired"
    assert waits(zoo).startswith("2 texts are")
    assert {text for text, count in server.submitted().items() if count == 2} == lost
    server.fate = lambda text: None
    server.finish_all()
    embedded(zoo)
    check_vectors(zoo, server)
    assert not server.direct
    assert all(server.billed[text] == 1 for text in TEXTS - lost)


def test_a_cancelled_batch_gives_what_it_has_and_the_rest_is_submitted_again(
    zoo: Path, server: BatchServer
) -> None:
    waits(zoo)
    server.finish(server.out[0], status="cancelled", count=5)
    assert waits(zoo).startswith("7 texts are")
    server.finish_all()
    embedded(zoo)
    check_vectors(zoo, server)
    assert set(server.billed.values()) == {1}


def test_a_batch_that_expired_with_nothing_done_is_submitted_again(
    zoo: Path, server: BatchServer
) -> None:
    waits(zoo)
    server.finish(server.out[0], count=0)
    assert waits(zoo).startswith("12 texts are")
    server.finish_all()
    embedded(zoo)
    check_vectors(zoo, server)
    assert set(server.billed.values()) == {1}


@pytest.mark.parametrize("status", ["validating", "finalizing", "cancelling", "paused_for_audit"])
def test_a_status_that_is_not_an_end_is_waited_for(
    zoo: Path, server: BatchServer, status: str
) -> None:
    waits(zoo)
    (batch,) = server.batches.values()
    batch.shown["status"] = status
    waits(zoo)
    del batch.shown["request_counts"]
    waits(zoo)
    assert len(server.batches) == 1


def test_a_batch_that_failed_as_a_whole_is_an_error_in_the_services_words_and_then_tried_again(
    zoo: Path, server: BatchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches_of(5, zoo)
    waits(zoo)
    first, second, third = server.out
    server.fail(first, f"Enqueued token limit reached for my-model by {KEY}")
    server.finish(second)
    with pytest.raises(
        ProviderError, match=r"Enqueued token limit reached for my-model by [*]{3}[.]"
    ) as caught:
        embedded(zoo)
    assert first in str(caught.value)
    assert len(records(zoo)) == 1  # of the third: the second was collected all the same
    with EmbeddingCache(run_of(zoo, "zoo").warehouse.cache) as cache:
        assert len(cache) == len(server.batches[second].texts())
    assert waits(zoo).startswith("7 texts are in 2 batch jobs")
    assert third in {record["id"] for record in records(zoo)}
    server.finish_all()
    embedded(zoo)
    check_vectors(zoo, server)
    assert set(server.billed.values()) == {1}


def test_more_texts_than_a_batch_holds_become_several(
    zoo: Path, server: BatchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches_of(5, zoo)
    assert waits(zoo).startswith("12 texts are in 3 batch jobs")
    assert sorted(len(batch.lines) for batch in server.batches.values()) == [2, 5, 5]
    server.finish(server.out[1])
    assert waits(zoo).startswith("7 texts are in 2 batch jobs")
    server.finish_all()
    embedded(zoo)
    check_vectors(zoo, server)
    assert set(server.submitted().values()) == set(server.billed.values()) == {1}


def test_a_file_is_never_larger_than_the_service_takes(
    zoo: Path, server: BatchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches_of(10, zoo)
    most = 10 * 180
    monkeypatch.setattr(_openai_batch, "FILE_BYTES", most)
    waits(zoo)
    sizes = [len(content) for content in server.files.values()]
    assert len(sizes) > 2
    assert max(sizes) <= most
    assert set(server.submitted()) == TEXTS


def test_two_pipelines_of_one_model_share_what_is_with_the_service(
    zoo: Path, server: BatchServer
) -> None:
    pipeline(zoo, server, "park")
    write_csv(zoo, "park.csv", [*ANIMALS, ("p1", "a bench in the park", "park")])
    waits(zoo)
    assert waits(zoo, "park").startswith("13 texts are in 2 batch jobs")
    assert set(server.submitted().values()) == {1}
    server.finish(server.out[0])
    assert waits(zoo, "park").startswith("1 text is")
    server.finish_all()
    embedded(zoo, "park")
    embedded(zoo)
    check_vectors(zoo, server)
    check_vectors(zoo, server, TEXTS | {"a bench in the park"}, "park")
    assert set(server.billed.values()) == {1}


def test_a_pipeline_waits_for_its_own_texts_alone(zoo: Path, server: BatchServer) -> None:
    waits(zoo)
    pipeline(zoo, server, "park")
    write_csv(zoo, "park.csv", [("p1", "a bench in the park", "park")])
    waits(zoo, "park")
    server.finish(server.out[1])
    embedded(zoo, "park")
    check_vectors(zoo, server, {"a bench in the park"}, "park")
    waits(zoo)


def test_the_same_model_at_another_address_has_batches_of_its_own(
    zoo: Path, server: BatchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits(zoo)
    with serve_batches(DIMENSIONS) as other:
        pipeline(zoo, other, "zoo")
        assert waits(zoo).startswith("12 texts are in 1 batch job")
        assert (len(server.batches), len(other.batches)) == (1, 1)
        assert server.asked["retrieve"] == 1
        assert other.asked["retrieve"] == 1


def test_a_budget_ends_before_the_text_that_goes_beyond_and_keeps_what_was_submitted(
    zoo: Path, server: BatchServer
) -> None:
    tokens = plan(run_of(zoo, "zoo")).tokens
    each = tokens // 12
    pipeline(zoo, server, more=f"budget: {{tokens: {5 * each + each // 2}}}\n")
    for submitted in (5, 10):
        with pytest.raises(BudgetError, match="What was paid for is kept"):
            embedded(zoo)
        assert sum(server.submitted().values()) == submitted
    assert waits(zoo).startswith("12 texts are in 3 batch jobs")
    assert set(server.submitted()) == TEXTS
    assert set(server.submitted().values()) == {1}
    server.finish_all()
    embedded(zoo)
    check_vectors(zoo, server)
    assert set(server.billed.values()) == {1}


def test_what_was_submitted_before_a_budget_or_a_failure_ended_the_run_is_noted_for_the_sensor(
    zoo: Path, server: BatchServer
) -> None:
    tokens = plan(run_of(zoo, "zoo")).tokens
    pipeline(zoo, server, more=f"budget: {{tokens: {tokens // 2}}}\n")
    with pytest.raises(BudgetError):
        embedded(zoo)
    assert noted(zoo) == tags(zoo)
    assert len(noted(zoo)) == 1
    pipeline(zoo, server)
    batches_of(2, zoo)
    right, made = server.create, []

    def creates_one(wanted: dict[str, Any]) -> dict[str, Any]:
        made.append(right(wanted))
        server.faults["create"].append(Fault("status", 401, "The key is no more."))
        return made[-1]

    server.create = creates_one  # type: ignore[method-assign]
    with pytest.raises(ProviderError, match="The key is no more"):
        embedded(zoo)
    assert len(made) == 1
    assert noted(zoo) == tags(zoo)
    assert len(noted(zoo)) == 2


def test_what_a_killed_process_submitted_is_noted_for_the_sensor(
    zoo: Path, server: BatchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches_of(5, zoo)
    process: list[subprocess.Popen[bytes]] = []
    right = server.create

    def killing(wanted: dict[str, Any]) -> dict[str, Any]:
        made = right(wanted)
        if len(server.batches) == 2:
            os.kill(process[0].pid, signal.SIGKILL)
            process[0].wait()
        return made

    monkeypatch.setattr(server, "create", killing)
    with server.lock:
        process.append(subprocess.Popen([sys.executable, "-c", RUN]))
    process[0].wait(60)
    assert process[0].returncode == -signal.SIGKILL
    assert len(tags(zoo)) == 2
    assert noted(zoo) == tags(zoo)


@pytest.mark.parametrize("all_ended", [False, True])
def test_a_run_of_some_partitions_forgets_nothing_that_the_others_wait_for(
    zoo: Path, server: BatchServer, all_ended: bool
) -> None:
    batches_of(1, zoo)
    waits(zoo)
    everything = tags(zoo)
    assert (len(everything), noted(zoo)) == (12, everything)
    context = run_of(zoo, "zoo")
    first, second = context.spec.partition_names
    of_first = context.folder.chunks.read_columns(first, ["text"])
    assert of_first is not None
    theirs = set(of_first["text"].to_pylist())
    assert 0 < len(theirs) < 12
    with pytest.raises(BatchPending):
        embedded(zoo, partitions=[first])
    assert noted(zoo) == everything
    for name in server.out:
        if all_ended or set(server.batches[name].texts()) <= theirs:
            server.finish(name)
    assert len(embedded(zoo, partitions=[first])) == 1
    assert len(tags(zoo)) == (0 if all_ended else 12 - len(theirs))
    assert (
        noted(zoo) == everything
    )  # what is collected now may be what the other partition waits for
    server.finish_all()
    embedded(zoo, partitions=[second])
    check_vectors(zoo, server)
    embedded(zoo)  # the run that the sensor asks for: nothing is left to do
    assert not noted(zoo)
    assert set(server.billed.values()) == {1}


KNOWN, DIRECT, LATER = "text-embedding-3-large", 0.13, 0.065  # USD per million tokens
LONG = [
    (name, f"{title}{200 * ' and so on'}", cat) for name, title, cat in ANIMALS
]  # so that a part of a cent tells
ODD_ONE = LONG[3][1]


def known_model(home: Path, measured: str = UNMEASURED) -> None:
    """From now on the pipeline `zoo` has long texts, and a model whose prices are known."""
    path = home / "pipelines" / "zoo.yaml"
    text = (
        path.read_text()
        .replace("my-model", KNOWN)
        .replace("mode: batch", "mode: batch, tokenizer_of: estimate")
    )
    path.write_text(text.replace(UNMEASURED, measured))
    write_csv(home, "zoo.csv", LONG)


def billed(server: BatchServer) -> list[int]:
    """Tokens of each batch that has ended."""
    return [
        found["total_tokens"]
        for batch in server.batches.values()
        if (found := batch.shown.get("usage"))
    ]


def test_what_batches_and_direct_requests_cost_is_on_record_as_soon_as_it_is_known(
    zoo: Path, server: BatchServer
) -> None:
    known_model(zoo)
    batches_of(5, zoo)
    server.fate = lambda text: "refused" if text == ODD_ONE else None
    waits(zoo)
    context = run_of(zoo, "zoo")
    for name in server.out:
        server.finish(name)
        if server.out:
            waits(zoo)
            assert context.usage()["usd"] == pytest.approx(
                sum(billed(server)) * LATER / 1e6, abs=1e-8
            )
    reports = embedded(zoo)
    check_vectors(zoo, server, {title for _, title, _ in LONG})
    assert server.direct == [ODD_ONE]
    direct = len(ODD_ONE.split()) * DIRECT
    assert context.usage()["usd"] == pytest.approx(
        (sum(billed(server)) * LATER + direct) / 1e6, abs=1e-8
    )
    last = billed(server)[-1]  # the others were told by the runs that waited
    assert sum(report.statistics["billed_tokens"] for report in reports) == last + len(
        ODD_ONE.split()
    )
    usd = sum(report.statistics["usd"] for report in reports)
    assert usd == pytest.approx((last * LATER + direct) / 1e6, abs=2e-6)


def test_what_was_collected_is_on_record_though_another_batch_has_failed(
    zoo: Path, server: BatchServer
) -> None:
    known_model(zoo)
    batches_of(6, zoo)
    waits(zoo)
    failed, done = server.out
    server.fail(failed, "Enqueued token limit reached")
    server.finish(done)
    with pytest.raises(ProviderError, match="Enqueued token limit"):
        embedded(zoo)
    (tokens,) = billed(server)
    assert run_of(zoo, "zoo").usage()["usd"] == pytest.approx(tokens * LATER / 1e6, abs=1e-8)


def test_a_plan_reckons_batches_at_their_price_and_what_is_asked_directly_at_the_full_one(
    zoo: Path, server: BatchServer
) -> None:
    known_model(zoo, measured="evaluation: {known_items: 4}\n")
    context = run_of(zoo, "zoo")
    made = plan(context)
    assert made.tokens > 0
    assert made.tokens_to_check > 0
    assert made.usd == pytest.approx(
        (made.tokens * LATER + made.tokens_to_check * DIRECT) / 1e6, abs=1e-6
    )
    server.fate = lambda text: "refused" if text == ODD_ONE else None
    waits(zoo)
    server.finish_all()
    with EmbeddingCache(context.warehouse.cache) as cache:
        opened(zoo, cache).collect()
    left = plan(context)
    assert left.texts_to_embed == 1
    assert left.usd == pytest.approx((left.tokens + left.tokens_to_check) * DIRECT / 1e6, abs=1e-6)


def test_a_budget_in_dollars_holds_twice_as_much_in_batches() -> None:
    provider, budget = Openai(model=KNOWN, mode="batch"), Budget(usd=0.01)
    assert BudgetTracker.of(budget, provider).limit == pytest.approx(0.01 / DIRECT * 1e6)
    assert BudgetTracker.of(budget, provider, batch_jobs=True).limit == pytest.approx(
        0.01 / LATER * 1e6
    )


def test_a_budget_that_holds_no_text_submits_nothing(zoo: Path, server: BatchServer) -> None:
    pipeline(zoo, server, more="budget: {tokens: 1}\n")
    with pytest.raises(BudgetError):
        embedded(zoo)
    assert not server.asked
    assert not records(zoo)


PASSING = [
    Fault("status", 500),
    Fault("status", 429, "Rate limit reached.", {"retry-after": "0.01"}),
    Fault("status", 503, "Overloaded.", {"retry-after-ms": "10"}),
    Fault("reset"),
    Fault("deaf"),
    Fault("page"),
    Fault("cut"),
]


@pytest.mark.parametrize(
    ("step", "fault"),
    [
        pytest.param(step, fault, id=f"{step}-{fault.kind}-{fault.status}")
        for step in ("upload", "create", "retrieve", "content")
        for fault in PASSING
        if (step, fault.kind)
        != ("content", "page")  # results that cannot be read are another matter
    ],
)
def test_what_fails_on_the_way_is_tried_again_and_no_batch_is_made_twice(
    zoo: Path, server: BatchServer, step: str, fault: Fault
) -> None:
    was_made = step == "create" and fault.kind in ("deaf", "page", "cut")
    server.faults[step].extend([fault] if was_made else [fault, fault])
    if step == "create":
        server.faults["list"].append(Fault("status", 502, "Bad gateway."))
    waits(zoo)
    waits(zoo)
    server.finish_all()
    embedded(zoo)
    assert not server.faults[step]
    assert len(server.batches) == 1
    check_vectors(zoo, server)
    assert set(server.billed.values()) == {1}


def test_a_file_that_was_uploaded_is_not_uploaded_again_for_the_next_try(
    zoo: Path, server: BatchServer
) -> None:
    server.faults["create"].extend([Fault("status", 500)] * 3)
    waits(zoo)
    assert (server.asked["upload"], server.asked["create"], server.asked["list"]) == (1, 4, 3)


@pytest.mark.parametrize("step", ["upload", "create", "retrieve", "content"])
def test_a_service_that_keeps_failing_is_an_error_and_the_next_run_goes_on(
    zoo: Path, server: BatchServer, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if step in ("retrieve", "content"):
        waits(zoo)
        server.finish_all()
    before = server.asked[step]
    server.faults[step].extend([Fault("status", 500)] * ATTEMPTS)
    with pytest.raises(
        ProviderError,
        match=r"answered 500: The server had an error.*stays on record: run again later",
    ):
        embedded(zoo)
    assert server.asked[step] == before + ATTEMPTS
    if step in ("upload", "create"):
        waits(zoo)
        server.finish_all()
    embedded(zoo)
    assert len(server.batches) == 1
    check_vectors(zoo, server)
    assert set(server.billed.values()) == {1}


def test_a_batch_whose_making_was_never_answered_is_adopted_by_the_next_run(
    zoo: Path, server: BatchServer
) -> None:
    server.faults["create"].append(Fault("deaf"))
    server.faults["list"].extend([Fault("status", 500)] * ATTEMPTS)
    with pytest.raises(ProviderError, match="stays on record"):
        embedded(zoo)
    assert records(zoo)[0]["id"] is None
    waits(zoo)
    assert [record["id"] for record in records(zoo)] == server.out
    assert server.asked["create"] == 1


@pytest.mark.parametrize("step", ["upload", "create"])
@pytest.mark.parametrize("status", [400, 401, 403, 413])
def test_what_the_service_refuses_to_take_is_an_error_and_no_record_of_it_stays(
    zoo: Path, server: BatchServer, step: str, status: int
) -> None:
    server.faults[step].append(Fault("status", status, f"Billing hard limit of {KEY}."))
    with pytest.raises(
        ProviderError, match=rf"answered {status}: Billing hard limit of [*]{{3}}\."
    ):
        embedded(zoo)
    assert server.asked[step] == 1
    assert not records(zoo)
    waits(zoo)
    assert set(server.submitted().values()) == {1}


def test_a_batch_that_the_service_does_not_know_is_not_paid_for_again_but_told(
    zoo: Path, server: BatchServer
) -> None:
    waits(zoo)
    kept = dict(server.batches)
    server.batches.clear()
    for _ in range(2):
        with pytest.raises(
            ProviderError, match=r"has no batch batch_\d+: No batch found.*another key"
        ) as caught:
            embedded(zoo)
    assert "data/warehouse/batch_jobs" in str(caught.value)
    assert server.asked["create"] == 1
    server.batches.update(kept)
    server.finish_all()
    embedded(zoo)
    check_vectors(zoo, server)


def test_results_that_are_gone_are_made_again(zoo: Path, server: BatchServer) -> None:
    waits(zoo)
    server.finish_all()
    server.files.clear()
    assert waits(zoo).startswith("12 texts are")
    server.finish_all()
    embedded(zoo)
    check_vectors(zoo, server)


def test_results_that_cannot_be_read_at_all_are_not_paid_for_again(
    zoo: Path, server: BatchServer
) -> None:
    server.fate = lambda text: "junk"
    waits(zoo)
    server.finish_all()
    for _ in range(2):
        with pytest.raises(
            ProviderError, match=r"the 12 lines of the results of batch .* are all unreadable"
        ):
            embedded(zoo)
    assert server.asked["create"] == 1


def test_a_batch_of_one_vector_for_all_texts_is_not_believed(
    zoo: Path, server: BatchServer
) -> None:
    server.fate = lambda text: "alike"
    waits(zoo)
    server.finish_all()
    embedded(zoo)
    assert set(server.direct) >= TEXTS
    check_vectors(zoo, server)
    assert server.asked["create"] == 1


def test_a_service_whose_vectors_have_other_dimensions_fails_the_run_and_is_not_paid_again_and_again(
    zoo: Path, server: BatchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedding_pipelines.embedding.request.FIRST_WAIT_SECONDS", 0.001)
    waits(zoo)
    server.dimensions = DIMENSIONS // 2
    server.finish_all()
    for _ in range(2):
        with pytest.raises(ProviderError, match="dimensions"):
            embedded(zoo)
    assert server.asked["create"] == 1


def test_a_damaged_record_is_named(zoo: Path, server: BatchServer) -> None:
    waits(zoo)
    (path,) = (zoo / "data" / "warehouse" / "batch_jobs").glob("*.json")
    for content in ("{", "[]", '{"tag": "x"}'):
        path.write_text(content)
        with pytest.raises(StoreError, match=f"{path.name} is damaged"):
            embedded(zoo)
    assert server.asked["create"] == 1


def test_what_has_ended_is_named_alike_until_something_new_has(
    zoo: Path, server: BatchServer
) -> None:
    waits(zoo)
    with EmbeddingCache(run_of(zoo, "zoo").warehouse.cache) as cache:
        assert opened(zoo, cache).finished() == []
        server.finish_all()
        (tag,) = opened(zoo, cache).finished()
        assert tag == records(zoo)[0]["tag"]
        assert opened(zoo, cache).finished() == [tag]


def test_a_submission_that_fails_again_is_no_news(zoo: Path, server: BatchServer) -> None:
    names = []
    for _ in range(2):
        server.faults["create"].extend([Fault("status", 500)] * ATTEMPTS)
        with pytest.raises(ProviderError):
            embedded(zoo)
        with EmbeddingCache(run_of(zoo, "zoo").warehouse.cache) as cache:
            names += opened(zoo, cache).finished()
    assert len(names) == 2
    assert len(set(names)) == 1


def test_one_try_is_one_request(zoo: Path, server: BatchServer) -> None:
    waits(zoo)
    before = server.asked["retrieve"]
    server.faults["retrieve"].extend([Fault("status", 500)] * 9)
    started = time.monotonic()
    with (
        EmbeddingCache(run_of(zoo, "zoo").warehouse.cache) as cache,
        pytest.raises(ProviderError),
    ):
        opened(zoo, cache, attempts=1).finished()
    assert server.asked["retrieve"] == before + 1
    assert time.monotonic() - started < 5


def test_a_real_batch_holds_what_the_guide_says() -> None:
    options = Openai(model="my-model", dimensions=8, base_url="http://127.0.0.1:9/v1")
    service = options.open(Path()).batch_service
    assert service.max_texts == 50_000
    assert 150_000_000 < service.max_bytes < 200_000_000


def test_tokens_are_learnt_from_the_bill(zoo: Path, server: BatchServer) -> None:
    waits(zoo)
    server.finish_all()
    with EmbeddingCache(run_of(zoo, "zoo").warehouse.cache) as cache:
        jobs = opened(zoo, cache)
        jobs.collect()
        assert jobs.billed_tokens == 12 * 6
        assert jobs.running() is None
        assert jobs.pending_keys() == set()
        jobs.submit([], BudgetTracker(Budget(tokens=0)))
    assert server.asked["create"] == 1
