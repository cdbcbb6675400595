"""What the driver decides of workers, with a stand-in for Ray in place of a cluster."""

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from embedding_pipelines.engines import ray as engine_module
from embedding_pipelines.engines.ray import NODE_LABEL, Ray
from embedding_pipelines.errors import ProviderError, QuarantineError

GOOD, BAD = "a1" * 28, "b2" * 28  # machines


class Handle:
    """An actor that was placed on a machine, and what Ray was told of it."""

    def __init__(self, actor: Any, options: dict[str, Any]) -> None:
        self.actor, self.options = actor, options

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *given: (getattr(self.actor, name), given))


class Stand:
    """As much of Ray as the pool uses: a call is made when its result is asked for."""

    class exceptions:  # as Ray names it
        class RayError(Exception):
            pass

        class ActorUnavailableError(RayError):
            pass

    def __init__(self) -> None:
        self.workers: list[Handle] = []
        self.hubs: list[Handle] = []
        self.killed: list[Any] = []

    def remote(self, *classes: Any, **given: Any) -> Any:
        if not classes:
            return lambda one: self.remote(one)
        (kind,) = classes

        def options(**options: Any) -> Any:
            def remote(*arguments: Any) -> Handle:
                handle = Handle(kind(*arguments), options)
                if kind is not Worker:
                    self.hubs.append(handle)
                else:
                    self.workers.append(handle)
                    self.place(handle)
                return handle

            return SimpleNamespace(remote=remote)

        return SimpleNamespace(options=options)

    def place(self, handle: Handle) -> None:
        """The machine that is refused comes first, as one with room does."""
        selector = handle.options["label_selector"] or {}
        is_first = len(self.workers) == 1
        is_open = BAD not in selector.get(NODE_LABEL, "") and (is_first or len(self.workers) > 2)
        handle.actor.node = BAD if is_open else GOOD

    def method(self, **given: Any) -> Callable[[Any], Any]:
        return lambda function: function

    def put(self, value: Any) -> Any:
        return value

    def get(self, reference: Any, timeout: float | None = None) -> Any:
        function, given = reference
        return function(*given)

    def wait(self, references: list[Any], num_returns: int, timeout: float) -> Any:
        return references[:1], references[1:]

    def kill(self, actor: Any) -> None:
        self.killed.append(actor)

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"NodeID": name, "Alive": True, "NodeManagerAddress": name[:2]} for name in (GOOD, BAD)
        ]

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: GOOD)


class Worker:
    """Its device breaks at the first shard of this name, and stays so."""

    node = ""
    breaks_at = "b01"
    broken = 0

    def __init__(self, *arguments: Any) -> None:
        self.is_broken, self.cores = False, arguments[-1]

    def open(self) -> tuple[str, str]:
        return self.node, "it is another one" if self.node == BAD else ""

    def work(self, shard: str) -> tuple[list[str], int, Exception | None]:
        if shard == self.breaks_at and Worker.broken < 1:
            Worker.broken += 1
            self.is_broken = True
        if self.is_broken:
            return [], 0, RuntimeError("CUDA error: an illegal memory access")
        return [shard], 1, None


class Work:
    """Shards that nothing has to be done for."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def kit(self) -> Any:
        return SimpleNamespace(
            open_shared=lambda: SimpleNamespace(release=lambda worker: None, close=lambda: "")
        )

    def advance(self, amount: int) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Stand:
    monkeypatch.setattr(engine_module, "_Actor", Worker)
    monkeypatch.setattr(Worker, "broken", 0)
    return Stand()


def results(ray: Stand, work: Work, shards: list[str], workers: int = 2) -> list[str]:
    pool = engine_module._Pool(ray, Ray(workers=workers), work, workers)  # type: ignore[arg-type]
    try:
        return list(pool.work(shards))
    finally:
        pool.close()


def test_no_worker_starts_on_a_machine_that_was_refused_and_a_broken_one_gets_no_other_shard(
    ray: Stand,
) -> None:
    work, shards = Work(), [f"b{number:02d}" for number in range(6)]
    assert sorted(results(ray, work, shards)) == shards
    assert [handle.actor.node for handle in ray.workers] == [BAD, GOOD, GOOD]
    assert [handle.actor.cores for handle in ray.workers] == [1, 1, 1]
    assert [handle.options["label_selector"] for handle in ray.workers] == [
        None,
        None,
        {NODE_LABEL: f"!in({BAD})"},
    ]
    (hub,) = ray.hubs
    where = hub.options["scheduling_strategy"]
    assert (where.node_id, where.soft) == (GOOD, False)
    assert ray.workers[1] in ray.killed  # it broke at b01, and b02 went to the next one
    assert sum("takes no part" in note for note in work.notes) == 1
    assert "b01 goes to another worker: CUDA error: an illegal memory access." in work.notes


def test_a_shard_that_breaks_two_workers_is_put_aside_and_no_other_one(
    ray: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Worker, "broken", -1)  # so that it breaks two
    work, shards = Work(), [f"b{number:02d}" for number in range(6)]
    with pytest.raises(QuarantineError) as caught:
        results(ray, work, shards, workers=3)
    assert caught.value.shards == {"b01": "CUDA error: an illegal memory access"}


def test_what_a_user_has_to_mend_ends_the_run(ray: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = ProviderError("The key is wrong.")
    monkeypatch.setattr(Worker, "work", lambda self, shard: ([], 0, fault))
    with pytest.raises(ProviderError, match="The key is wrong"):
        results(ray, Work(), ["b00"])


@pytest.mark.parametrize(("reserved", "cores"), [(0, None), (0.5, 1), (1, 1), (2.5, 2)])
def test_a_worker_keeps_the_cores_busy_that_are_reserved_for_it(
    reserved: float, cores: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("RAYON_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
    counts: list[int] = []
    monkeypatch.setattr(pa, "set_cpu_count", counts.append)
    monkeypatch.setattr(os, "environ", environment := dict[str, str]())
    assert Ray(cpus_per_worker=reserved).cores == cores
    engine_module._keep_to(cores)
    assert environment == (dict.fromkeys(names, str(cores)) if cores else {})
    assert counts == ([cores] if cores else [])
