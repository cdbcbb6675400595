"""`ray`: workers of a Ray cluster, on this machine or on many.

    driver ── names of shards ──▶ workers, each with the model open ──▶ shards, where they lie
      │  ▲         reports ◀──────┘   │
      │  └── what is done ── hub ◀────┘ cache, rate limit, budget: one process, beside the driver
      └───── a beat each second ──▶

Ray places processes, sees them die and carries the calls; what a death means is decided here. A
worker is never restarted by Ray: the shard that it had goes back to the queue. A shard that has
ended SHARD_DEATHS workers is put aside, and the others go on. A machine that is lost is not the
shard's fault. A worker that fails at something which nobody foresaw, or whose device does, is ended,
since its process may be broken; no other one starts on a machine that was refused. Workers end by
themselves when they have not heard of the driver for SILENCE_SECONDS,
and PATIENCE_SECONDS later: whatever becomes of it, nothing goes on computing for nobody.
"""

import contextlib
import math
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Self

import pyarrow as pa
from pydantic import Field, model_validator

from embedding_pipelines.engines.base import Engine, Kit, ShardWork
from embedding_pipelines.errors import (
    DeviceError,
    EmbeddingPipelinesError,
    EngineError,
    QuarantineError,
    counted,
    error_lines,
)
from embedding_pipelines.extras import need

SHARD_DEATHS = 2  # workers that a shard may end
MACHINE_DEATHS = 5  # machines that may be lost under one shard
STARTS = 3  # workers in a row that may die before they are ready
BEAT_SECONDS = 1.0
SILENCE_SECONDS = 30.0  # after which a worker takes the driver for dead
PATIENCE_SECONDS = 15.0  # for requests that are out when a run ends early
START_SECONDS = 600.0  # until `min_workers` are ready: machines may have to be started first
TELL_SECONDS = 60.0  # between two notes that workers are waited for
LONGEST_REASON = 400  # characters
NODE_SECONDS = 2.0  # until the cluster has noticed that a machine is gone
NODE_LABEL = "ray.io/node-id"  # which Ray gives to each machine


class Ray(Engine):
    """Workers of a Ray cluster. All machines see the home folder at the same path, and have the
    variables of the environment that the model needs."""

    kind: Literal["ray"] = "ray"
    address: str | None = None
    """`10.0.0.5:6379`, `auto` on a machine of the cluster, or `ray://10.0.0.5:10001` from elsewhere.
    Default: the cluster that this process is connected with, else this machine alone."""

    workers: int | None = Field(None, ge=1, le=10_000)
    """At most; default: as many as the cluster has room for when the step begins."""

    min_workers: int = Field(1, ge=1, le=10_000)
    """Nothing begins before so many are ready."""

    cpus_per_worker: float = Field(1, ge=0, le=1_024)
    gpus_per_worker: float = Field(0, ge=0, le=64)

    @model_validator(mode="after")
    def _check_workers(self) -> Self:
        if self.workers is not None and self.workers < self.min_workers:
            raise ValueError(
                f"min_workers is {self.min_workers}, and workers, the most there are, "
                f"{self.workers}. Set min_workers to {self.workers} or less."
            )
        return self

    @property
    def cores(self) -> int | None:
        """How many a worker keeps busy; None where Ray reserves none."""
        return max(1, math.floor(self.cpus_per_worker)) if self.cpus_per_worker else None

    def map_shards(self, work: ShardWork, shards: Sequence[str]) -> Iterator[Any]:
        with _connection(self.address) as ray:
            count = min(self._room(ray), len(shards))
            with contextlib.closing(_Pool(ray, self, work, count)) as pool:
                yield from pool.work(shards)

    def _room(self, ray: Any) -> int:
        """How many workers to start. Raises EngineError if the cluster has no room for one."""
        total = ray.cluster_resources()
        cpus, gpus = total.get("CPU", 0), total.get("GPU", 0)
        room = min(
            math.floor(cpus / self.cpus_per_worker) if self.cpus_per_worker else 10_000,
            math.floor(gpus / self.gpus_per_worker) if self.gpus_per_worker else 10_000,
        )
        if self.workers is not None:  # a cluster may grow
            return self.workers
        if room < self.min_workers:
            raise EngineError(
                f"The Ray cluster has {cpus:g} CPUs and {gpus:g} GPUs, which is no room for "
                f"{counted(self.min_workers, 'worker')} of {self.cpus_per_worker:g} CPUs and "
                f"{self.gpus_per_worker:g} GPUs. Start more machines, or say engine.workers if the "
                "cluster starts them by itself."
            )
        return room


@contextlib.contextmanager
def _connection(address: str | None) -> Iterator[Any]:
    """Ray, connected; one that somebody has connected already stays as it is."""
    ray = need("ray", "ray")
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"address": address or "local"}
    if not options["address"].startswith("ray://"):
        options |= {"log_to_driver": False, "configure_logging": False}
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves this machine
        options["include_dashboard"] = False
    try:
        with _own_signals():
            ray.init(**options)
    except Exception as error:  # of a node that does not start in time Ray raises a plain one
        what = f"No Ray cluster answers at {address}: {error_lines(error)[0]}. Correct engine.address, "
        what += "or start the cluster."
        if address is None:
            what = f"Ray does not start on this machine: {error_lines(error)[0]}. Run it again when the "
            what += "machine has less to do, or name a cluster in engine.address."
        raise EngineError(what) from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray replaces the handler of SIGTERM, by which Dagster ends a run and says so."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


class _Hub:
    """The actor that all workers call: the work's own shared object, and who has said what when."""

    def __init__(self, kit: Kit) -> None:
        self._shared = kit.open_shared()
        self._heard_at = time.monotonic()
        self._counts: dict[str, tuple[str, int]] = {}  # by worker, as `_Actor` has it
        self._lost: set[str] = set()

    def beat(self) -> dict[str, tuple[str, int]]:
        """The driver lives. The shard that each worker is at, and what it has done of it."""
        self._heard_at = time.monotonic()
        return self._counts

    def look(self, worker: str, shard: str, count: int) -> float:
        """Seconds since the driver was last heard."""
        self._counts[worker] = shard, count
        return time.monotonic() - self._heard_at

    def call(self, worker: str, method: str, arguments: tuple[Any, ...]) -> Any:
        if worker in self._lost:  # a machine that was cut off for a while
            raise EngineError(f"{worker} counts as lost, and another one has its shard.")
        return getattr(self._shared, method)(worker, *arguments)

    def release(self, worker: str) -> None:
        self._counts.pop(worker, None)
        self._shared.release(worker)

    def lose(self, worker: str) -> None:
        """It is heard no more: what it claimed now nobody would ever give up."""
        self._lost.add(worker)
        self.release(worker)

    def end(self) -> str:
        note: str = self._shared.close()
        return note


class _Shared:
    """`engines.base.Shared` in a worker."""

    def __init__(self, hub: Any, name: str) -> None:
        self._hub, self.name = hub, name

    def call(self, method: str, *arguments: Any) -> Any:
        ray = need("ray", "ray")
        try:
            return ray.get(self._hub.call.remote(self.name, method, arguments))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None  # what the shared object raised


class _Stopped(Exception):
    """The run has ended."""


class _Actor:
    """One worker. Ray calls `work` in one thread, and `stop` in another."""

    def __init__(
        self, kit: Kit, hub: Any, name: str, silence_seconds: float, cores: int | None
    ) -> None:
        self._kit, self._hub, self._name, self._silence = kit, hub, name, silence_seconds
        self._cores = cores
        self._stopped, self._at = threading.Event(), ("", 0)  # the shard, and what is done of it
        threading.Thread(target=self._listen, daemon=True, name="driver-beat").start()

    def open(self) -> tuple[str, str]:
        """The machine, and why it cannot take part; empty if it can."""
        ray = need("ray", "ray")
        node = ray.get_runtime_context().get_node_id()
        try:
            _keep_to(self._cores)
            self._worker = self._kit.open(_Shared(self._hub, self._name), self._cores)
        except (EmbeddingPipelinesError, OSError) as error:
            return node, error_lines(error)[0].rstrip(".")
        except Exception as error:  # noqa: BLE001  # of libraries, as a GPU without memory
            return node, f"{type(error).__name__}: {error_lines(error)[0]}".rstrip(".")
        return node, ""

    def work(self, shard: str) -> tuple[list[Any], int, Exception | None]:
        """The results of one shard, how much of it is done, and what ended it early."""
        ray = need("ray", "ray")
        results: list[Any] = []
        failure: Exception | None = None
        self._at = shard, 0
        try:
            results.extend(self._worker.work([shard], self._advance))
        except DeviceError as error:
            failure = RuntimeError(str(error))
        except EmbeddingPipelinesError as error:
            failure = error
        except Exception as error:  # noqa: BLE001  # which the driver may be unable to load
            failure = RuntimeError(f"{type(error).__name__}: {error_lines(error)[0]}")
        ray.get(self._hub.release.remote(self._name))
        return results, self._at[1], failure

    def stop(self) -> None:
        """End what is going on, once requests that are out have brought what they can."""
        self._stopped.set()

    def _advance(self, amount: int) -> None:
        shard, count = self._at
        self._at = shard, count + amount
        if self._stopped.is_set():
            raise _Stopped

    def _listen(self) -> None:
        """Tell the hub what is done, until nobody is there any more."""
        ray = need("ray", "ray")
        left: float | None = None  # seconds; at first, while the hub may still start, any number
        while left is None or left > 0:
            try:
                look = self._hub.look.remote(self._name, *self._at)
                left = self._silence - ray.get(look, timeout=left) - BEAT_SECONDS
            except ray.exceptions.RayError:
                break
            time.sleep(BEAT_SECONDS)
        self._stopped.set()
        time.sleep(min(PATIENCE_SECONDS, self._silence))
        os._exit(1)


class _Pool:
    """The driver's side: workers, the shard that each is at, and what has become of each shard."""

    def __init__(self, ray: Any, options: Ray, work: ShardWork, count: int) -> None:
        self._ray, self._options, self._work, self._wanted = ray, options, work, count
        kit = work.kit()
        self._hub = _hub_class(ray).options(scheduling_strategy=_beside_driver(ray)).remote(kit)
        self._kit, self._actor = ray.put(kit), ray.remote(max_concurrency=2)(_Actor)
        self._names: dict[Any, str] = {}  # of the actors that live
        self._nodes: dict[Any, str] = {}  # of those that are ready
        self._starting: dict[Any, Any] = {}  # reference -> actor
        self._running: dict[Any, tuple[Any, str]] = {}  # reference -> actor and shard
        self._idle: deque[Any] = deque()
        self._number = self._failed_starts = 0
        self._refusals: dict[str, None] = {}  # in order
        self._refused = set[str]()  # machines
        self._deaths: Counter[str] = Counter()
        self._machines: Counter[str] = Counter()
        self._quarantine: dict[str, str] = {}
        self._counts: Counter[str] = Counter()  # by shard, as `advance` was told
        self._waiting_since, self._told_at = time.monotonic(), time.monotonic()
        self._has_begun, self._lost = False, ""
        self._progress = dict[str, tuple[str, int]]()
        self._has_ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True, name="driver-beat")
        self._beating.start()

    def work(self, shards: Sequence[str]) -> Iterator[Any]:
        """As `Engine.map_shards`."""
        queue = deque(shards)
        while queue or self._running:
            self._start(len(queue) + len(self._running))
            self._hand_out(queue)
            references = [*self._starting, *self._running]
            ready, _ = self._ray.wait(references, num_returns=1, timeout=BEAT_SECONDS)
            self._advance()
            for reference in ready:
                if reference in self._starting:
                    self._take_in(reference)
                else:
                    yield from self._finish(reference, queue)
        if self._quarantine:
            reasons = "; ".join(f"{shard}: {why}" for shard, why in self._quarantine.items())
            raise QuarantineError(
                f"{counted(len(self._quarantine), 'shard')} ended every worker that had it, and all "
                f"others are done. {reasons}. See to what is in it, or give workers more memory, then "
                "run again.",
                self._quarantine,
            )

    def close(self) -> None:
        """Let requests that are out bring what they can, then end all workers."""
        ray, error = self._ray, self._ray.exceptions.RayError
        for actor, _ in self._running.values():
            actor.stop.remote()
        if self._running:
            running = list(self._running)
            ray.wait(running, num_returns=len(running), timeout=PATIENCE_SECONDS)
        for actor in list(self._names):
            self._drop(actor)
        with contextlib.suppress(error):
            if note := ray.get(self._hub.end.remote(), timeout=PATIENCE_SECONDS):
                self._work.note(note)
        self._has_ended.set()
        ray.kill(self._hub)  # so that a beat that is out ends, too
        self._beating.join(PATIENCE_SECONDS)

    def _beat(self) -> None:
        while True:
            try:
                self._progress = self._ray.get(self._hub.beat.remote())
            except self._ray.exceptions.RayError as error:
                self._lost = _reason(error)
                return
            if self._has_ended.wait(BEAT_SECONDS):
                return

    def _start(self, shards: int) -> None:
        """As many workers as there is work for."""
        if self._lost:
            raise self._hub_error()
        if self._wanted < min(self._options.min_workers, shards):
            raise EngineError(f"Too few workers are left: {'; '.join(self._refusals)}.")
        for _ in range(min(self._wanted, shards) - len(self._names)):
            self._number += 1
            name = f"worker {self._number}"
            actor = self._actor.options(
                num_cpus=self._options.cpus_per_worker,
                num_gpus=self._options.gpus_per_worker,
                label_selector=self._elsewhere(),
            ).remote(self._kit, self._hub, name, SILENCE_SECONDS, self._options.cores)
            self._names[actor] = name
            self._starting[actor.open.remote()] = actor

    def _elsewhere(self) -> dict[str, str] | None:
        """Where a worker may start, as Ray is told: on no machine that was refused."""
        return {NODE_LABEL: f"!in({','.join(sorted(self._refused))})"} if self._refused else None

    def _hand_out(self, queue: deque[str]) -> None:
        needed = min(self._options.min_workers, len(queue) + len(self._running))
        if (not self._has_begun and len(self._nodes) < needed) or not self._nodes:
            self._wait(needed)
            return
        self._has_begun, self._waiting_since = True, time.monotonic()
        while queue and self._idle:
            actor, shard = self._idle.popleft(), queue.popleft()
            self._running[actor.work.remote(shard)] = actor, shard

    def _wait(self, needed: int) -> None:
        """Say that workers are waited for. Raises EngineError once that was for too long."""
        now = time.monotonic()
        have = f"{len(self._nodes)} of {counted(needed, 'worker')} are ready"
        if now - self._waiting_since > START_SECONDS:
            raise EngineError(
                f"After {START_SECONDS / 60:.0f} minutes {have}. See whether the cluster starts "
                "machines with room for them, or lower engine.min_workers."
            )
        if now - self._told_at > TELL_SECONDS:
            self._told_at = now
            self._work.note(f"Waiting for the Ray cluster: {have}.")

    def _advance(self) -> None:
        """Tell how far the shards are that are being worked on."""
        shards = {self._names[actor]: shard for actor, shard in self._running.values()}
        for name, (shard, count) in self._progress.items():
            if shards.get(name) == shard:  # else it tells of the one before
                self._tell(shard, count)

    def _tell(self, shard: str, count: int) -> None:
        """A shard that is worked on again counts once it is further than it was."""
        if (more := count - self._counts[shard]) > 0:
            self._counts[shard] = count
            self._work.advance(more)

    def _take_in(self, reference: Any) -> None:
        """A worker has started, or has not."""
        actor = self._starting.pop(reference)
        try:
            node, refusal = self._ray.get(reference)
        except self._ray.exceptions.RayError as death:
            self._drop(actor)
            self._failed_starts += 1
            reason = _reason(death)
            if self._failed_starts >= STARTS:
                raise EngineError(
                    f"{STARTS} workers in a row ended before they were ready; the last: {reason}. "
                    "See that all machines have this package, and memory for the model."
                ) from None
            self._work.note(f"A worker ended before it was ready: {reason}. Another one starts.")
            return
        self._failed_starts = 0
        if refusal:
            self._drop(actor)
            self._wanted -= 1
            self._refused.add(node)
            where = f"the machine {self._address(node)}"
            self._refusals[f"{where}: {refusal}"] = None
            self._work.note(f"A worker on {where} takes no part: {refusal}.")
            return
        self._nodes[actor] = node
        self._idle.append(actor)

    def _finish(self, reference: Any, queue: deque[str]) -> Iterator[Any]:
        """A worker has ended a shard, or the shard the worker."""
        actor, shard = self._running.pop(reference)
        try:
            results, count, error = self._ray.get(reference)
        except self._ray.exceptions.RayError as death:  # out of memory is one of its own
            node = self._nodes[actor]
            self._lose(actor)
            is_cut_off = isinstance(death, self._ray.exceptions.ActorUnavailableError)
            if is_cut_off or self._is_gone(node):
                self._machines[shard] += 1
                again = self._machines[shard] < MACHINE_DEATHS
                reason = f"the machine {self._address(node)} was lost"
            else:
                self._deaths[shard] += 1
                again = self._deaths[shard] < SHARD_DEATHS
                reason = _reason(death)
            self._again(shard, again, reason, queue)
            return
        if error is None or isinstance(error, EmbeddingPipelinesError):
            self._idle.append(actor)
        else:
            self._lose(actor)
        yield from results
        self._tell(shard, count)
        if isinstance(error, EmbeddingPipelinesError):
            raise error
        if error is not None and results:  # the shard is written, and counts once
            self._work.note(f"{shard} is done, but what is kept beside it is not: {error}")
        elif error is not None:
            self._deaths[shard] += 1
            self._again(shard, self._deaths[shard] < SHARD_DEATHS, str(error), queue)

    def _again(self, shard: str, again: bool, reason: str, queue: deque[str]) -> None:
        if again:
            self._work.note(f"{shard} goes to another worker: {reason}.")
            queue.appendleft(shard)
        else:
            self._quarantine[shard] = reason

    def _drop(self, actor: Any) -> str:
        """End a worker, if it lives; its name."""
        self._ray.kill(actor)
        self._nodes.pop(actor, None)
        return self._names.pop(actor)

    def _lose(self, actor: Any) -> None:
        """Let others have what a worker had claimed that was lost. Raises EngineError if the hub is
        lost, too."""
        name = self._drop(actor)
        try:
            self._ray.get(self._hub.lose.remote(name))
        except self._ray.exceptions.RayError as error:
            self._lost = self._lost or _reason(error)
            raise self._hub_error() from None

    def _hub_error(self) -> EngineError:
        return EngineError(
            f"The process that all workers share is lost ({self._lost}). Run again: nothing that is "
            "done is lost."
        )

    def _is_gone(self, node: str) -> bool:
        """Whether a machine is lost; the cluster may notice that later than that of its workers."""
        deadline = time.monotonic() + NODE_SECONDS
        while any(entry["NodeID"] == node and entry["Alive"] for entry in self._ray.nodes()):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True

    def _address(self, node: str) -> str:
        entries = [entry for entry in self._ray.nodes() if entry["NodeID"] == node]
        return f"{entries[0]['NodeManagerAddress']} ({node[:8]})" if entries else node[:8]


def _keep_to(cores: int | None) -> None:
    """Have libraries that take no number start so many threads in this process, which is a worker's
    own. Ray has told those of OpenMP, BLAS among them, before they were loaded."""
    if cores is not None:
        os.environ.setdefault("RAYON_NUM_THREADS", str(cores))  # tokenizers read it at first use
        os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(cores))  # and TensorFlow this
        pa.set_cpu_count(cores)


def _beside_driver(ray: Any) -> Any:
    """Where the driver is: there the cache is a file of the machine's own. And nowhere else: a wish
    (`soft`) Ray does not hear of what reserves nothing, and the loss of any machine would be that of
    the hub."""
    strategies = need("ray.util.scheduling_strategies", "ray")
    node = ray.get_runtime_context().get_node_id()
    return strategies.NodeAffinitySchedulingStrategy(node_id=node, soft=False)


def _hub_class(ray: Any) -> Any:
    """Beats are answered while a call takes its time."""

    class Hub(_Hub):
        @ray.method(concurrency_group="beats")  # type: ignore[untyped-decorator]
        def beat(self) -> dict[str, tuple[str, int]]:
            return super().beat()

        @ray.method(concurrency_group="beats")  # type: ignore[untyped-decorator]
        def look(self, worker: str, shard: str, count: int) -> float:
            return super().look(worker, shard, count)

    return ray.remote(num_cpus=0, concurrency_groups={"beats": 1})(Hub)


def _reason(death: Exception) -> str:
    """Why an actor has ended, in a line, as Ray says it."""
    if isinstance(death, need("ray", "ray").exceptions.OutOfMemoryError):  # Ray says half a page
        return "its machine had no memory left, and Ray ended the worker"
    lines = [line.strip() for line in str(death).splitlines() if line.strip()]
    text = next((line for line in lines if "exit detail" in line), lines[-1] if lines else "")
    _, found, detail = text.partition("Worker exit detail: ")
    detail, *_ = detail.partition(" Some common causes")
    return (detail if found else text).rstrip(".")[:LONGEST_REASON]
