"""Which vectors of the embedding cache the pipelines of a home use, and forgetting others."""

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from embedding_pipelines.embedding.cache import EmbeddingCache, content_keys
from embedding_pipelines.errors import ConfigError, EmbeddingPipelinesError, describe_os_error
from embedding_pipelines.overlay import RowMaker, codec_of, searched_release
from embedding_pipelines.providers.base import InputType
from embedding_pipelines.quality.queries import query_texts
from embedding_pipelines.releases import read_releases
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import SPACE_ID_KEY
from embedding_pipelines.spec.load import read_pipelines
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.steps.chain import step_named
from embedding_pipelines.storage.bucket import CacheRules
from embedding_pipelines.storage.pushed import pushed_log
from embedding_pipelines.storage.warehouse import Warehouse

KEYS = 4_096  # that are handed on together
GIGABYTE = 1e9


@dataclass(frozen=True)
class CacheUse:
    """How many vectors there are, and what they take; `used_by` counts what two pipelines share
    for the first of them."""

    path: Path
    size_bytes: int
    vectors: int
    used_by: dict[str, int]
    faults: dict[str, str] = field(default_factory=dict)  # by pipeline: why nobody can tell its own

    @property
    def unused(self) -> int | None:
        """None: nobody can tell, for there are faults."""
        return None if self.faults else self.vectors - sum(self.used_by.values())


def cache_use(home: Path) -> CacheUse:
    """What the cache of a home holds and which pipelines use it: with their chunks, releases and
    checks, in the spaces of today's model, of their shards and of their releases.

    A pipeline whose file cannot be read, or whose model not be opened, has a fault in place of a
    number.
    """
    specs, broken = read_pipelines(home)
    faults = {path.stem: str(error) for path, error in broken.items()}

    def readable(name: str, keys: Iterator[list[bytes]]) -> Iterator[list[bytes]]:
        try:
            yield from keys
        except EmbeddingPipelinesError as error:
            faults[name] = str(error)
        except OSError as error:
            faults[name] = describe_os_error(error)

    path, size = _file(home)
    with _open(home, specs.values()) as (cache, users):
        vectors, used_by = cache.count_used({name: readable(name, users[name]) for name in users})
    counts = {name: count for name, count in used_by.items() if name not in faults}
    return CacheUse(path, size, vectors, counts, faults)


def forget_unused(home: Path) -> CacheUse:
    """Forget all other vectors, those of programs too, and make the file smaller; what was there
    before. Raises ConfigError for a pipeline file that cannot be read, whatever says why a pipeline's
    model cannot be opened, and BusyError while a pipeline runs."""
    path, size = _file(home)
    with _open(home, _read_all(home), is_writing=True) as (cache, users):
        vectors, used_by = cache.count_used(users, not cache.read_only)
    return CacheUse(path, size, vectors, used_by)


def expire_unused(
    home: Path, rules: CacheRules, today: int, look_only: bool = False
) -> tuple[int, int]:
    """Forget those of the other vectors that `rules` let go; how many, and their bytes. `today` is a
    day's number; with `look_only` they stay. Raises as `forget_unused`."""
    most = None if rules.max_gb is None else int(rules.max_gb * GIGABYTE)
    if rules.unused_days is None and most is None:
        return 0, 0
    with _open(home, _read_all(home), not look_only) as (cache, users):
        if cache.read_only and not cache.path.exists():
            return 0, 0
        return cache.expire(users, today, rules.unused_days, most, look_only)


def _file(home: Path) -> tuple[Path, int]:
    """Where the cache is, and what it takes."""
    path = Warehouse(home).cache
    return path, path.stat().st_size if path.exists() else 0


def _read_all(home: Path) -> Collection[PipelineSpec]:
    specs, broken = read_pipelines(home)
    if broken:
        names = ", ".join(sorted(path.name for path in broken))
        raise ConfigError(
            f"Nobody can know which vectors {names} would use. Mend or delete it, then try again."
        )
    return specs.values()


@contextlib.contextmanager
def _open(
    home: Path, specs: Collection[PipelineSpec], is_writing: bool = False
) -> Iterator[tuple[EmbeddingCache, dict[str, Iterator[list[bytes]]]]]:
    """The cache, and the keys of each pipeline; to write, while none of them runs."""
    warehouse = Warehouse(home)
    cache = EmbeddingCache(warehouse.cache, read_only=not warehouse.cache.exists())
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(Run(spec, warehouse)) for spec in specs]
        for run in runs if is_writing else ():
            stack.enter_context(run.folder.lock("run", timeout_seconds=0))
        stack.enter_context(cache)
        yield cache, {run.spec.name: _keys(run) for run in runs}


def _keys(run: Run) -> Iterator[list[bytes]]:
    """The keys of all that a pipeline can look up, many of them twice."""
    spaces, batch = _spaces(run), list[bytes]()
    for text, kind in _texts(run):
        batch += [EmbeddingCache.key(space, kind, text) for space in spaces]
        if len(batch) >= KEYS:
            yield batch
            batch = []
    yield batch
    for rows in _contents(run):
        yield from (content_keys(space, "document", rows) for space in spaces)


def _spaces(run: Run) -> set[str]:
    releases = read_releases(run.folder).releases
    spaces = {release.space.with_codec(None).id for release in releases}
    for name in run.spec.partition_names:
        schema = run.folder.embeddings.schema(name)
        if schema is not None:
            spaces.add((schema.metadata or {}).get(SPACE_ID_KEY, b"").decode())
    if not run.spec.model.trains or step_named("train").current(run) is not None:
        spaces.add(run.model.space.id)
    return spaces


def _pushed_texts(run: Run) -> Iterator[str]:
    """Those of pushed documents that searches lay over the release, since no run has read them."""
    log = pushed_log(run.warehouse, run.spec.name)
    if not log.last():
        return
    release = searched_release(run.warehouse, run.folder)
    changes = (change for _, change in log.changes(release.pushed))
    if records := [change.record for change in changes if change.record is not None]:
        codec = codec_of(run.folder, release)
        yield from RowMaker(run.warehouse, release, run.model, codec).texts(records)


def _texts(run: Run) -> Iterator[tuple[str, InputType]]:
    yield from query_texts(run)
    yield from ((text, "document") for text in _pushed_texts(run))
    labels = getattr(run.spec.model, "labels", None)
    yield from ((text, "document") for text in (labels.texts if labels else ()))


def _contents(run: Run) -> Iterator[pa.RecordBatch]:
    """What the chunks were embedded from: those of the shards, and of each release."""
    for name in run.spec.partition_names:
        yield from run.folder.chunks.read(name, run.spec.source.content_columns)
    for release in read_releases(run.folder).releases:
        table, source = (
            release.spec.store.table(run.folder.tables, release.table),
            release.spec.source,
        )
        yield from table.scan(source.content_columns, version=release.version)
