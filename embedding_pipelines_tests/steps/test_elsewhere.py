"""Steps whose shards are worked on elsewhere: from what was pickled, without what the run has open."""

import pickle
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from embedding_pipelines.engines.base import Engine, ShardWork
from embedding_pipelines.errors import EngineError
from embedding_pipelines.files import read_json, write_json
from embedding_pipelines.run import Run
from embedding_pipelines.steps.chain import step_named
from embedding_pipelines.steps.chunks import _Cutting
from embedding_pipelines.steps.embeddings import _Embedding
from embedding_pipelines_tests.chain import run_of, write_csv, write_pipeline
from embedding_pipelines_tests.clusters import Noted
from embedding_pipelines_tests.conftest import HASHING


class Direct:
    """Calls what workers share in this process."""

    name = "worker 1"

    def __init__(self, hub: Any) -> None:
        self._hub = hub

    def call(self, method: str, *arguments: Any) -> Any:
        copied = pickle.loads(pickle.dumps(arguments))  # noqa: S301
        return pickle.loads(pickle.dumps(getattr(self._hub, method)(self.name, *copied)))  # noqa: S301


class Parcelled(Engine):
    """One worker, from a kit that was pickled."""

    kind: Literal["parcelled"] = "parcelled"

    def map_shards(self, work: ShardWork, shards: Sequence[str]) -> Iterator[Any]:
        kit = pickle.loads(pickle.dumps(work.kit()))  # noqa: S301
        hub = kit.open_shared()
        worker = kit.open(Direct(hub), None)
        for shard in shards:
            results = list(worker.work([shard], work.advance))
            hub.release(Direct.name)
            yield from pickle.loads(pickle.dumps(results))  # noqa: S301
        if note := hub.close():
            work.note(note)


def write(home: Path) -> Run:
    write_csv(home, "a.csv", [(f"d{n}", f"text number {n // 2}", "x") for n in range(80)])
    write_pipeline(home, "p", HASHING)
    run = run_of(home, "p")
    work(run, "documents")
    return run


def work(run: Run, name: str) -> dict[str, Any]:
    """Each partition's statistics."""
    reports = step_named(name).work(run, run.spec.partition_names)
    return {report.partition: report.statistics for report in reports}


def test_shards_are_those_of_one_process(tmp_path: Path) -> None:
    here, there = write(tmp_path / "here"), write(tmp_path / "there")
    there.spec = there.spec.model_copy(update={"engine": Parcelled()})
    for name in ("chunks", "embeddings"):
        left, right = work(here, name), work(there, name)
        assert left.keys() == right.keys()
        for partition in left:
            shards = [getattr(run.folder, name).required(partition) for run in (here, there)]
            assert shards[0].digest == shards[1].digest
    assert here.usage() == pytest.approx(there.usage(), abs=1.0)
    assert not there.folder.cluster.exists()
    assert len(there.cache) == 40
    assert not any(report["embedded"] for report in work(there, "embeddings").values())


def test_damaged_vectors_of_the_cache_are_named(tmp_path: Path) -> None:
    run = write(tmp_path)
    run.spec, run.progress = run.spec.model_copy(update={"engine": Parcelled()}), Noted()
    work(run, "chunks")
    work(run, "embeddings")
    with sqlite3.connect(run.warehouse.cache) as database:
        database.execute("UPDATE vectors SET checksum = 1 WHERE rowid <= 3")
    database.close()
    write_json(run.folder.embed_anew, {"partitions": run.spec.partition_names})
    work(run, "embeddings")
    assert run.progress.notes == [
        f"3 damaged vectors of the cache {run.warehouse.cache} are embedded anew."
    ]


@pytest.mark.parametrize("kind", [_Cutting, _Embedding])
def test_a_machine_that_is_not_as_the_others_is_refused(kind: Any, tmp_path: Path) -> None:
    run = write(tmp_path)
    work(run, "chunks")
    arguments = (lambda _: None,) if kind is _Cutting else (_budget(), lambda _: None)
    kit = kind(run, *arguments).kit()
    shared: Any = Direct(None)
    for name, other, words in (
        ("version", "0.0.0", "it has version"),
        ("token", "another", "mount the same folder"),
        ("configuration" if kind is _Cutting else "space", "another", "its model"),
    ):
        wrong = type(kit)(**{**vars(kit), name: other})
        with pytest.raises(EngineError, match=words):
            wrong.open(shared, None)
    write_json(run.folder.cluster, {"run": "another"})
    with pytest.raises(EngineError, match="mount the same folder"):
        kit.open(shared, None)
    assert read_json(run.folder.cluster)


def test_a_worker_opens_its_model_for_the_cores_that_it_has(tmp_path: Path) -> None:
    run = write(tmp_path)
    work(run, "chunks")
    kit = _Embedding(run, _budget(), lambda _: None).kit()
    worker: Any = kit.open(Direct(kit.open_shared()), 3)
    assert worker._run.model.cores == 3
    assert run.model.cores is None


def _budget() -> Any:
    from embedding_pipelines.embedding.budget import BudgetTracker

    return BudgetTracker()
