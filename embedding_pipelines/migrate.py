"""Migrates a pipeline to another model: two lines side by side, a gate between them, and one pointer.

The pipeline's file is the one truth: `model` is the model to come, `migration.old_model` the one
that searches read until the cutover. Each step here can be said again after a kill, and goes on.
"""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import yaml

from embedding_pipelines.compression.base import dimensions_out_of
from embedding_pipelines.errors import ConfigError, ReleaseError
from embedding_pipelines.files import (
    delete,
    list_files,
    read_json,
    replacing,
    temporary_folder,
    write_json,
)
from embedding_pipelines.metrics.confidence import paired_loss
from embedding_pipelines.progress import Progress
from embedding_pipelines.providers.base import ProviderOptions
from embedding_pipelines.quality.evidence import query_figures
from embedding_pipelines.releases import (
    Release,
    Releases,
    live_release,
    read_releases,
    rollback,
    write_releases,
)
from embedding_pipelines.remote import writing
from embedding_pipelines.run import Run
from embedding_pipelines.spec.edit import REMOVED, Options, edit_pipeline, with_options
from embedding_pipelines.spec.load import find_file, find_pipeline, parse_model, parse_pipeline
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.steps.checks import current_checks
from embedding_pipelines.steps.codec import COPY
from embedding_pipelines.steps.documents import read_files
from embedding_pipelines.steps.garbage import unused_models
from embedding_pipelines.steps.old_line import is_cut_over, kept_until
from embedding_pipelines.steps.pending import lagging_step
from embedding_pipelines.steps.vector_store import TableState
from embedding_pipelines.storage.warehouse import (
    NEW_LINE,
    PipelineFolder,
    Warehouse,
    parse_state,
)
from embedding_pipelines.validate import require_model

MIGRATION = ("migration",)
SIDE = 0.975  # of an interval of 95%
FINISHING = "finishing"  # in the record of the cutover: the releases of the old line, which goes


@dataclass(frozen=True)
class Change:
    """What a metric of queries is worth in both lines, over the queries that both answered."""

    metric: str
    old: float
    new: float
    low: float  # of new - old, an interval of 95%
    high: float
    queries: int


@dataclass(frozen=True)
class MigrationStatus:
    """Where a migration stands. `phase`: filling, held back, ready, cut over, or over: the old line is
    no longer kept up."""

    pipeline: str
    phase: str
    old_model: str
    new_model: str
    live_release: int | None
    old_release: int | None
    new_release: int | None
    embedded_partitions: int  # of the new line
    partitions: int
    held_back_by: list[str] = field(default_factory=list)  # checks of the new line
    changes: list[Change] = field(default_factory=list)
    kept_until: str | None = None  # the old line, after the cutover; ISO 8601
    next_step: str = ""  # a sentence


def start(home: Path, name: str, model: str) -> PipelineSpec:
    """Write a migration to `model`, as a pipeline file names one, into the file; what it says now.
    The next run begins to fill the new line.

    Raises ConfigError for a pipeline that migrates already or was never released, and for a model
    that there is not, or that does not fit the file's other sections.
    """
    spec, warehouse = find_pipeline(name, home), Warehouse(home)
    path, folder = find_file(name, home), warehouse.pipeline(spec.name)
    if spec.migration is not None:
        raise ConfigError(
            f"Pipeline {spec.name!r} migrates already. End that first: `embedding-pipelines migrate "
            f"{spec.name} finish`, or abort."
        )
    if folder.new_line.exists():
        raise ConfigError(
            f"Pipeline {spec.name!r}: a migration has left {folder.new_line}. Say "
            f"`embedding-pipelines migrate {spec.name} {_rest(folder)}` first."
        )
    live_release(folder)  # without one there is nothing to keep up
    new = parse_model(model)
    if new == spec.model:
        raise ConfigError(
            f"Pipeline {spec.name!r} has the model {model} already. Name another one."
        )
    _require_dimensions(spec, new, home)
    require_model(spec.model_copy(update={"model": new}), warehouse)
    text = path.read_bytes().decode()
    before = yaml.safe_load(text)["model"]
    options: Options = {
        ("model",): yaml.safe_load(model),
        MIGRATION: {"old_model": before},
    }
    with _edited(path, options) as edited:
        return edited


def _require_dimensions(spec: PipelineSpec, model: ProviderOptions, home: Path) -> None:
    """Raises ConfigError if the file says `output_dim`, and it is not known that a model gives it."""
    if spec.output_dim is None:
        return
    size = dimensions_out_of(spec.compression, model.known_dimensions(home))
    if size != spec.output_dim:
        gives = "may not give" if size is None else f"gives {size} in place of"
        raise ConfigError(
            f"Pipeline {spec.name!r}: the new model {gives} the {spec.output_dim} dimensions of "
            "output_dim. Take output_dim out of the file, for it only checks, and say this again."
        )


def status(run: Run) -> MigrationStatus:
    """Where the migration of the run's pipeline stands. Raises ConfigError if it does not migrate."""
    spec, folder = _migrating(run), run.folder
    releases = read_releases(folder)
    old, new = _newest(releases, ""), _newest(releases, NEW_LINE)
    until = kept_until(run)
    problem, held_back = "", list[str]()
    if is_cut_over(run):
        phase = "cut over" if until is None or datetime.now(UTC) <= until else "over"
    else:
        problem, held_back = _problem(run)
        phase = "held back" if held_back else "filling" if problem else "ready"
    command = f"embedding-pipelines migrate {spec.name}"
    next_step = {
        "ready": f"`{command} cutover` has searches read the new line.",
        "cut over": (
            f"`embedding-pipelines rollback {spec.name} --to {old.number if old else 0}` goes back; "
            f"`{command} finish` drops the old line."
        ),
        "over": f"`{command} finish` drops the old line, which is no longer kept up.",
    }.get(phase, problem)
    assert spec.migration is not None
    return MigrationStatus(
        pipeline=spec.name,
        phase=phase,
        old_model=_title(spec, spec.migration.old_model),
        new_model=_title(spec, spec.model),
        live_release=releases.live,
        old_release=old.number if old else None,
        new_release=new.number if new else None,
        embedded_partitions=_embedded(run),
        partitions=spec.partitions,
        held_back_by=held_back,
        changes=_changes(folder, old, new) if old and new else [],
        kept_until=until.isoformat(timespec="seconds") if until else None,
        next_step=next_step,
    )


def cut_over(run: Run) -> tuple[Release, Release]:
    """Have searches read the newest release of the new line; returns (from, to).

    Raises ReleaseError with what is missing, if the new line does not hold what the old one holds
    or its checks hold it back; BusyError while the pipeline runs.
    """
    spec, folder = _migrating(run), run.folder
    with (
        folder.lock("run", timeout_seconds=0),
        writing(run.warehouse, spec.name, run.progress),
    ):
        if is_cut_over(run):
            raise ReleaseError(f"Pipeline {spec.name!r}: searches read the new line already.")
        problem, _ = _problem(run)
        if problem:
            raise ReleaseError(f"Pipeline {spec.name!r} cannot be cut over: {problem}")
        newest = _newest(read_releases(folder), NEW_LINE)
        assert newest is not None  # else something was missing
        # First: from when on the old line counts as kept. The pointer decides.
        write_json(folder.cutover, {"at": datetime.now(UTC).isoformat()})
        return rollback(folder, newest.number)


def abort(home: Path, name: str, progress: Progress) -> list[str]:
    """Put the old model back into the file, and delete what the new line has made; the names of the
    tables that went. The old line stays byte for byte as it is.

    Vectors stay in the embedding cache. Raises ReleaseError if searches read the new line.
    """
    spec, warehouse = find_pipeline(name, home), Warehouse(home)
    folder = warehouse.pipeline(spec.name, NEW_LINE)
    with _alone(warehouse, spec.name, progress):
        _require_migration(spec, folder)
        live = live_release(folder)
        if live.line == NEW_LINE:
            old = _newest(read_releases(folder), "")
            back = f"`embedding-pipelines rollback {spec.name} --to {old.number}`" if old else ""
            raise ReleaseError(
                f"Pipeline {spec.name!r}: searches read the new line. "
                + (f"Go back with {back}, then abort." if old else "The old one is gone.")
            )
        if FINISHING in (read_json(folder.cutover) or {}):
            raise ReleaseError(
                f"Pipeline {spec.name!r}: `migrate finish` has begun to drop the old line. Say "
                f"`embedding-pipelines {_forward(spec, read_releases(folder))}, then finish."
            )
        path = find_file(spec.name, home)
        if spec.migration is not None:
            before = yaml.safe_load(path.read_bytes())["migration"]["old_model"]
            with _edited(path, {("model",): before, MIGRATION: REMOVED}):
                pass
        releases = read_releases(folder)
        gone = releases.of_line(NEW_LINE)
        if gone:
            rest = releases.model_copy(update={"releases": releases.of_line("")})
            write_releases(folder, rest)
        return _drop(warehouse, spec, folder, gone)


def finish(home: Path, name: str, progress: Progress) -> list[str]:
    """End a migration after its cutover: the old line goes, and the new one takes its place; the
    names of the tables that went. Raises ReleaseError before the cutover."""
    spec, warehouse = find_pipeline(name, home), Warehouse(home)
    folder = warehouse.pipeline(spec.name, NEW_LINE)
    with _alone(warehouse, spec.name, progress):
        _require_migration(spec, folder)
        record, releases = read_json(folder.cutover) or {}, read_releases(folder)
        old = record.get(FINISHING, [entry.number for entry in releases.of_line("")])
        if live_release(folder).number in old:
            way = f"migrate {spec.name} cutover` first, or abort"
            if FINISHING in record:
                way = f"{_forward(spec, releases)} first"
            raise ReleaseError(
                f"Pipeline {spec.name!r}: searches read the old line. Say `embedding-pipelines {way}."
            )
        write_json(folder.cutover, {**record, FINISHING: old})
        _move_into_place(folder)
        if spec.migration is not None:
            with _edited(find_file(spec.name, home), {MIGRATION: REMOVED}):
                pass
        gone = [entry for entry in releases.releases if entry.number in old]
        own = [_in_place(entry, home, folder) for entry in releases.releases if entry not in gone]
        if own != releases.releases:
            write_releases(folder, releases.model_copy(update={"releases": own}))
        for path in unused_models(Run(find_pipeline(spec.name, home), warehouse)):
            shutil.rmtree(path)
        return _drop(warehouse, spec, folder, gone)


def _problem(run: Run) -> tuple[str, list[str]]:
    """What stands between the new line and its cutover, a sentence, and the checks that hold it
    back; empty if nothing does."""
    name, folder = run.spec.name, run.folder
    again = f"Run `embedding-pipelines run {name}`."
    step = lagging_step(run)
    if step == "release":
        record = current_checks(run)
        blocking = [check for check in record.checks if check.blocks] if record else []
        if blocking:
            words = " ".join(f"{check.name}: {check.sentence}" for check in blocking)
            return f"checks hold the new line back. {words}", [check.name for check in blocking]
    if step and step != "output":
        return f"the new line is not filled yet: {step!r} is not done. {again}", []
    old = Run(run.spec, run.warehouse, is_old_line=True)
    stamps = [{n: entry.stamp for n, entry in read_files(each).items()} for each in (old, run)]
    if stamps[0] != stamps[1]:
        return f"the two lines were made of different states of the source. {again}", []
    releases = read_releases(folder)
    if _newest(releases, NEW_LINE) is None:
        return f"the new line has no release yet. {again}", []
    return "", []


def _changes(folder: PipelineFolder, old: Release, new: Release) -> list[Change]:
    """By metric, over the queries of both."""
    before, now = query_figures(folder, old), query_figures(folder, new)
    changes = []
    for name in sorted(before.keys() & now.keys()):
        worse = paired_loss(now[name], before[name], SIDE)
        better = paired_loss(before[name], now[name], SIDE)
        shared = before[name].keys() & now[name].keys()
        if not shared:
            continue
        old_mean, new_mean = (
            sum(each[query] for query in shared) / len(shared) for each in (before[name], now[name])
        )
        changes.append(
            Change(name, old_mean, new_mean, better.certain, -worse.certain, len(shared))
        )
    return changes


def _embedded(run: Run) -> int:
    """How many partitions of the new line have the vectors of their chunks."""
    folder, names = run.folder, run.spec.partition_names
    pairs = [(folder.chunks.manifest(name), folder.embeddings.manifest(name)) for name in names]
    return sum(bool(cut and vectors and vectors.inputs == cut.digest) for cut, vectors in pairs)


def _move_into_place(folder: PipelineFolder) -> None:
    """Put what the new line's steps wrote where those of a pipeline with one line are. Its models are
    copied: until the releases name the copies, searches open them where they are."""
    for entry in sorted(folder.new_line.iterdir()) if folder.new_line.is_dir() else ():
        target = folder.folder / entry.name
        if entry in (folder.cutover, folder.bridge, folder.bridge.with_suffix(".json")):
            continue
        if entry.is_dir() and entry.name in ("codec", "quality", "embeddings"):
            _merge(entry, target, folder.usage)  # which hold what is the pipeline's, too
            continue
        if entry == folder.models(NEW_LINE):
            _copy_models(entry, target)
            continue
        if target.is_dir():
            shutil.rmtree(target)
        entry.replace(target)


def _copy_models(source: Path, target: Path) -> None:
    """Each model whole or not at all, and last the record that names it."""
    target.mkdir(exist_ok=True)
    for path in sorted(source.iterdir(), key=lambda path: path.suffix == ".json"):
        place = target / path.name
        if path.is_file():
            with replacing(place) as draft:
                shutil.copyfile(path, draft)
        elif not place.exists() and not path.name.startswith("."):  # checkpoints
            with temporary_folder(target, f".{path.name}-") as folder:
                shutil.copytree(path, folder / path.name)
                (folder / path.name).rename(place)


def _in_place(release: Release, home: Path, folder: PipelineFolder) -> Release:
    """A release of the new line once that has the place of the old one."""
    trained, model = getattr(release.spec.model, "trained", None), release.spec.model
    if trained is not None and (home / trained).parent == folder.models(NEW_LINE):
        place = folder.models("") / Path(trained).name
        model = model.model_copy(update={"trained": place.relative_to(home).as_posix()})
    spec = release.spec.model_copy(update={"model": model})
    return release.model_copy(update={"line": "", "spec": spec})


def _merge(source: Path, target: Path, own: Path) -> None:
    target.mkdir(exist_ok=True)
    if source.name == "embeddings":
        for path in target.iterdir():
            if path != own:
                delete(path)
    for path in source.iterdir():
        path.replace(target / path.name)
    source.rmdir()


def _drop(
    warehouse: Warehouse, spec: PipelineSpec, folder: PipelineFolder, gone: list[Release]
) -> list[str]:
    """Delete the tables and codecs that only the releases `gone` and the new line's folder name, and
    that folder; the tables' names."""
    releases, rest = read_releases(folder), warehouse.pipeline(spec.name)
    states = [parse_state(TableState, read_json(each.table_state)) for each in (rest, folder)]
    needed = {entry.table for entry in releases.releases}
    needed |= {states[0].table} if states[0] else set()
    names = {entry.table for entry in gone}
    if states[1] is not None:
        names |= {states[1].table, *states[1].trained_before}
    own = read_json(folder.codecs_in_force) or {}
    codecs = {entry.codec for entry in gone} | set(own.values())
    codecs -= {entry.codec for entry in releases.releases}
    codecs -= set((read_json(rest.codecs_in_force) or {}).values())
    there = set(spec.store.names(warehouse.tables))
    tables = sorted((names - needed) & there)
    for name in tables:
        spec.store.drop(warehouse.tables, name)
        for path in list_files(folder.quality, f"{name}-*"):
            delete(path)
    for name in codecs:
        for path in (folder.codecs / name, (folder.codecs / name).with_suffix(COPY)):
            delete(path)
    if folder.new_line.exists():
        shutil.rmtree(folder.new_line)
    return tables


@contextlib.contextmanager
def _alone(warehouse: Warehouse, name: str, progress: Progress) -> Iterator[None]:
    folder = warehouse.pipeline(name)
    with (
        folder.lock("run", timeout_seconds=0),
        folder.lock(timeout_seconds=0),
        writing(warehouse, name, progress),
    ):
        yield


@contextlib.contextmanager
def _edited(path: Path, options: Options) -> Iterator[PipelineSpec]:
    """What the file says with these options, which it has from then on."""
    text = path.read_bytes().decode()
    spec = parse_pipeline(with_options(text, options), path.stem, path.name)
    with edit_pipeline(path, options, spec):
        yield spec


def _migrating(run: Run) -> PipelineSpec:
    _require_migration(run.spec, None)
    return run.spec


def _require_migration(spec: PipelineSpec, folder: PipelineFolder | None) -> None:
    if spec.migration is None and (folder is None or not folder.new_line.exists()):
        raise ConfigError(
            f"Pipeline {spec.name!r} does not migrate. `embedding-pipelines migrate {spec.name} start "
            "--to MODEL` begins it."
        )


def _rest(folder: PipelineFolder) -> str:
    """The command that ends what a migration has left."""
    return "finish" if folder.cutover.exists() else "abort"


def _forward(spec: PipelineSpec, releases: Releases) -> str:
    """The end of the command that has searches read the new line again."""
    newest = _newest(releases, NEW_LINE)
    return f"rollback {spec.name}{f' --to {newest.number}' if newest else ''}`"


def _newest(releases: Releases, line: str) -> Release | None:
    return next(reversed(releases.of_line(line)), None)


def _title(spec: PipelineSpec, model: ProviderOptions) -> str:
    """Provider and model, and what else the pipeline file says of it."""
    values = model.model_dump(mode="json", exclude_defaults=True, exclude={"kind", "model"})
    title = ":".join(filter(None, (model.kind, getattr(model, "model", ""))))
    return ", ".join(
        [title, *(f"{name} {value}" for name, value in spec.as_written(values).items())]
    )
