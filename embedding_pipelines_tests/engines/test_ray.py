"""The engine `ray` on a cluster of several nodes: the same rows as in one process, whatever is lost
on the way."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from embedding_pipelines.engines import ray as engine_module
from embedding_pipelines.engines.ray import Ray
from embedding_pipelines.errors import EngineError, QuarantineError
from embedding_pipelines.files import read_json
from embedding_pipelines.steps import documents
from embedding_pipelines.steps.chain import step_named
from embedding_pipelines.steps.documents import forget_files
from embedding_pipelines.steps.embeddings import quarantined
from embedding_pipelines_tests.clusters import (
    add_node,
    assert_same_vectors,
    embed,
    local_cluster,
    requests,
    times_embedded,
    vectors_of,
    work,
    write_home,
)

# Nearly all of their time is the start of processes: of nodes, and of workers, which load the package.
pytestmark = [pytest.mark.slow, pytest.mark.alone]

SILENCE_SECONDS = 4.0

DRIVER = f"""\
import sys
from pathlib import Path
from embedding_pipelines.engines import ray
from embedding_pipelines.run import Run
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.clusters import embed
ray.SILENCE_SECONDS = {SILENCE_SECONDS}
home = Path(sys.argv[1])
embed(Run(find_pipeline("p", home), Warehouse(home)))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with local_cluster(2) as cluster:
        yield cluster


def engine(cluster: Any, workers: int, least: int = 1) -> str:
    options = f"address: '{cluster.address}', workers: {workers}, min_workers: {least}"
    return f"{{kind: ray, {options}}}"


def wait_until(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_rows_are_those_of_one_process_though_a_worker_dies_and_a_node_computes_otherwise(
    cluster: Any, tmp_path: Path
) -> None:
    """Every second text is in another partition, too, and is embedded once."""
    texts = [f"text number {n // 2} is here" for n in range(400)]
    # In two partitions: one that ends two workers is put aside.
    texts += ["one dies once of memory", texts[0], "one breaks once and for all"]
    inline = write_home(tmp_path / "inline", "inline", texts)
    (tmp_path / "inline" / "died").touch()
    (tmp_path / "inline" / "broken").touch()
    embed(inline)
    home = tmp_path / "ray"
    run = write_home(home, engine(cluster, 3), texts, 0.01, is_cut=False)
    node = add_node(cluster, OTHER_PRECISION="1")
    try:
        work(run, "chunks")
        reports = embed(run)
    finally:
        cluster.remove_node(node)
    for name in run.spec.partition_names:
        digests = {each.folder.chunks.required(name).digest for each in (inline, run)}
        assert len(digests) == 1
    assert_same_vectors(vectors_of(inline), vectors_of(run))
    again = {text: times for text, times in times_embedded(home).items() if times > 1}
    assert not again
    assert len({process for process, *_ in requests(home)}) > 1
    assert run.progress.done == run.progress.total
    assert sum(report.statistics["embedded"] for report in reports) <= 202
    notes = "\n".join(run.progress.notes)
    assert "takes no part: its vectors of known texts have a cosine of 0.9" in notes
    assert notes.count("takes no part: ") == 1  # others that start later start elsewhere
    assert "goes to another worker: " in notes
    assert "goes to another worker: CUDA error: an illegal memory access" in notes
    assert not run.folder.cluster.exists()
    assert max(len(repr(report)) for report in reports) < 1_500  # bytes that pass the driver


def test_documents_that_workers_read_are_those_of_one_process(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f'text number {n} is "here"\nand there' for n in range(400)]
    inline = write_home(tmp_path / "inline", "inline", texts)
    run = write_home(tmp_path / "ray", engine(cluster, 2), texts, is_cut=False)
    forget_files(run, None)
    monkeypatch.setattr(documents, "PART_BYTES", 4_000)
    monkeypatch.setattr("embedding_pipelines.sources.text.BLOCK_BYTES", 1_000)
    (report,) = work(run, "documents")
    assert (report.statistics["documents"], report.statistics["written_partitions"]) == (400, 4)
    assert run.progress.done == run.progress.total > 3
    for name in run.spec.partition_names:
        digests = {each.folder.documents.required(name).digest for each in (inline, run)}
        assert len(digests) == 1


def test_a_shard_that_ends_two_workers_is_put_aside_and_the_others_are_done(
    cluster: Any, tmp_path: Path
) -> None:
    texts = [f"text number {n} is here" for n in range(40)] + ["a poison"]
    run = write_home(tmp_path, engine(cluster, 2), texts)
    with pytest.raises(QuarantineError, match=r"1 shard ended every worker that had it") as caught:
        embed(run)
    ((partition, reason),) = caught.value.shards.items()
    assert reason
    assert read_json(run.folder.quarantine) == {"partitions": {partition: reason}}
    assert quarantined(run) == {partition: reason}
    others = [name for name in run.spec.partition_names if name != partition]
    assert len(run.folder.embeddings.manifests(run.spec.partition_names)) == len(others) == 3
    (tmp_path / "healed").touch()
    embed(write_home(tmp_path, "inline", texts))
    assert len(vectors_of(run)) == 41
    assert not run.folder.quarantine.exists()
    assert set(times_embedded(tmp_path).values()) == {1}


def test_a_node_is_killed_in_the_middle(cluster: Any, tmp_path: Path) -> None:
    texts = [f"text number {n} is here" for n in range(240)]
    # All three begin together, and take 3 s for a shard: the one that is lost is in the middle of it.
    run = write_home(tmp_path, engine(cluster, 3, least=3), texts, 0.05)
    node = add_node(cluster)

    def kill() -> None:
        wait_until(lambda: len({process for process, *_ in requests(tmp_path)}) == 3)
        cluster.remove_node(node, allow_graceful=False)

    killing = threading.Thread(target=kill)
    killing.start()
    embed(run)
    killing.join()
    assert len(vectors_of(run)) == 240
    again = [text for text, times in times_embedded(tmp_path).items() if times > 1]
    assert len(again) <= 20  # two requests were out at most
    assert " was lost." in "\n".join(run.progress.notes)


def test_workers_end_when_nobody_hears_of_the_driver(cluster: Any, tmp_path: Path) -> None:
    """A process that is stopped keeps its connections: Ray takes it for alive."""
    cluster.wait_for_nodes()  # else the driver may take one that was killed for its own
    texts = [f"text number {n} is here" for n in range(400)]
    write_home(tmp_path, engine(cluster, 1), texts, 0.1)
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], env=os.environ)
    try:
        wait_until(lambda: requests(tmp_path))
        driver.send_signal(signal.SIGSTOP)
        (worker, *_), *_ = requests(tmp_path)
        wait_until(lambda: not psutil.pid_exists(worker), 10 * SILENCE_SECONDS)
    finally:
        driver.kill()
        driver.wait()
    assert len(times_embedded(tmp_path)) < 400


def test_a_run_whose_hub_is_lost_ends(cluster: Any, tmp_path: Path) -> None:
    texts = [f"text number {n} is here" for n in range(200)]
    run = write_home(tmp_path, engine(cluster, 1), texts, 0.05)
    parents: list[str] = []

    def kill() -> None:
        wait_until(lambda: requests(tmp_path))
        for process in psutil.Process().children(recursive=True):
            if "ray::Hub" in process.cmdline()[:1]:
                parents.extend(process.parent().cmdline())
                process.kill()

    killing = threading.Thread(target=kill)
    killing.start()
    with pytest.raises(EngineError, match=r"that all workers share is lost .*Run again"):
        embed(run)
    killing.join()
    embed(write_home(tmp_path, "inline", texts))
    assert len(vectors_of(run)) == 200
    again = [text for text, times in times_embedded(tmp_path).items() if times > 1]
    assert len(again) <= 30  # one that could not be filed any more, and two that were out
    # It was beside the driver, so that the loss of another machine is not its own.
    assert f"--node_id={cluster.head_node.node_id}" in parents


def test_a_run_that_ends_early_leaves_no_worker(cluster: Any, tmp_path: Path) -> None:
    texts = [f"text number {n} is here" for n in range(100)]
    run = write_home(tmp_path, engine(cluster, 1), texts, 0.02)
    reports = step_named("embeddings").work(run, run.spec.partition_names)
    next(reports)
    reports.close()  # type: ignore[attr-defined]  # as Dagster does when a run is terminated
    workers = {process for process, *_ in requests(tmp_path)}
    wait_until(lambda: not any(map(psutil.pid_exists, workers)))
    assert not run.folder.cluster.exists()
    assert set(times_embedded(tmp_path).values()) == {1}


def test_a_cluster_without_room_is_told(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = f"{{kind: ray, address: '{cluster.address}', gpus_per_worker: 1}}"
    run = write_home(tmp_path, wanted, ["text"])
    with pytest.raises(EngineError, match=r"0 GPUs, which is no room for 1 worker of 1 CPUs and 1"):
        embed(run)
    monkeypatch.setattr(engine_module, "START_SECONDS", 1.0)
    run = write_home(tmp_path, wanted.replace("}", ", workers: 1}"), ["text"])
    with pytest.raises(EngineError, match=r"0 of 1 worker are ready"):
        embed(run)
    with pytest.raises(ValueError, match=r"Set min_workers to 2 or less"):
        Ray(workers=2, min_workers=3)


def test_a_worker_that_counts_as_lost_claims_nothing_any_more() -> None:
    """A machine that was cut off for a while: nobody would give up what it claims."""
    released = []

    class Kit:
        def open_shared(self) -> Any:
            return self

        def claim(self, worker: str) -> str:
            return worker

        def release(self, worker: str) -> None:
            released.append(worker)

    hub = engine_module._Hub(Kit())  # type: ignore[arg-type]
    assert hub.call("one", "claim", ()) == "one"
    hub.lose("one")
    assert released == ["one"]
    with pytest.raises(EngineError, match="one counts as lost"):
        hub.call("one", "claim", ())
    assert hub.call("two", "claim", ()) == "two"


def test_a_node_that_does_not_start_is_an_error_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(**given: Any) -> None:
        raise Exception("The current node timed out during startup.")  # as Ray does

    monkeypatch.setattr("ray.init", fail)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    for address, words in (
        (None, "does not start on this machine: The"),
        ("a:1", "answers at a:1"),
    ):
        with pytest.raises(EngineError, match=words), engine_module._connection(address):
            pass
