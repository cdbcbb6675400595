"""release: the `live` pointer moves to a table version, unless a check of it blocks.

Each release keeps the whole resolved configuration it was made with, so searching it needs no
pipeline file: a changed file never changes what is live.
"""

import contextlib
import json
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.errors import CompressionError, ReleaseError, StoreError
from embedding_pipelines.files import read_json, write_json
from embedding_pipelines.progress import StepReport
from embedding_pipelines.providers.base import Provider
from embedding_pipelines.quality.check import STRUCTURE, Check
from embedding_pipelines.space import Space
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.steps.chain import StepContext
from embedding_pipelines.steps.codec import codec_path, load_codec
from embedding_pipelines.steps.embeddings import spent
from embedding_pipelines.steps.vector_store import TableState, open_table, stored_space, table_state
from embedding_pipelines.storage.warehouse import PipelineFolder


class Release(BaseModel):
    """One table version that may be searched."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    table: str
    version: int
    rows: int
    space: Space  # of the vectors in the table, codec included
    codec: str  # file name below the pipeline's codec folder
    cleaning: str  # the recipe that documents were cleaned by
    spec: PipelineSpec
    released_at: datetime
    checks: dict[str, bool]
    metrics: dict[str, float] = {}
    forced: str = ""  # why it was released though checks of its quality failed


class Releases(BaseModel):
    """All releases that are kept, oldest first, and which one is live."""

    live: int | None = None
    releases: list[Release] = []

    def get(self, number: int | None) -> Release | None:
        return next((release for release in self.releases if release.number == number), None)


def read_releases(folder: PipelineFolder) -> Releases:
    return Releases.model_validate(read_json(folder.releases) or {})


def live_release(folder: PipelineFolder) -> Release:
    """The release that searches read. Raises ReleaseError if there is none yet."""
    releases = read_releases(folder)
    release = releases.get(releases.live)
    if release is None:
        raise ReleaseError(
            f"Pipeline {folder.folder.name!r} has no release yet. Run `embedding-pipelines run {folder.folder.name}`."
        )
    return release


def release(context: StepContext, space: Space, force_reason: str = "") -> StepReport:
    """Make the newest table version live, unless the newest release is just that: running again
    without changes neither adds a release nor undoes a rollback.

    Raises ReleaseError unless just this version passed every check that blocks. A reason lets it
    pass though it is worth less than it should be; a table that is broken is never released.
    """
    state, verified = table_state(context), read_json(context.folder.verified)
    configured = open_table(context, load_codec(context, space), space)[
        1
    ]  # the file may have changed since
    if (
        state is None
        or state.table != configured
        or not verified
        or (verified["table"], verified["version"]) != (state.table, state.version)
    ):
        raise ReleaseError(
            f"Pipeline {context.spec.name!r}: the newest table version was not checked. "
            f"Run `embedding-pipelines run {context.spec.name}` first."
        )
    checks = [Check(**check) for check in verified["checks"]]
    failed = [check.name for check in checks if check.blocks]
    if failed and not (force_reason and STRUCTURE.keys().isdisjoint(failed)):
        raise ReleaseError(
            f"Pipeline {context.spec.name!r}: table version {state.version} failed {', '.join(failed)}; "
            "the previous release stays live."
        )
    known = _without_lost(context, read_releases(context.folder))
    made = _next(context, space, known, state).model_copy(
        update={
            "checks": {check.name: check.passed for check in checks},
            "metrics": verified.get("metrics", {}),
            "forced": force_reason if failed else "",
        }
    )
    if known.releases and _serve_alike(known.releases[-1], made) and known.get(known.live):
        if (
            _last_in_history(context) < known.releases[-1].number
        ):  # a run was killed before it was written down
            _remember(context, known.releases[-1])
            _drop_tables(context, known)
        return StepReport("release", False, _statistics(known.releases[-1], known))
    kept = [*known.releases, made][-context.spec.store.keep_releases :]
    releases = Releases(live=made.number, releases=kept)
    _keep_tables(context, releases, made.table)
    write_json(context.folder.releases, releases.model_dump(mode="json"))
    _remember(context, made)
    _drop_tables(context, releases)
    return StepReport("release", True, _statistics(made, releases))


def current_release(context: StepContext, space: Space) -> StepReport | None:
    """The report if the newest release is live and serves what a run would release now, else
    None."""
    known, state = read_releases(context.folder), table_state(context)
    if state is None or not known.releases or known.live != known.releases[-1].number:
        return None
    newest = known.releases[-1]
    if (
        _last_in_history(context) < newest.number
    ):  # `release` writes down what a kill kept out of it
        return None
    same = _serve_alike(newest, _next(context, space, known, state))
    return StepReport("release", False, _statistics(newest, known)) if same else None


def rollback(folder: PipelineFolder, to: int | None) -> tuple[Release, Release]:
    """Move the live pointer back to the release before, or to release `to`; returns (from, to).

    Raises ReleaseError if there is no such release.
    """
    name = folder.folder.name
    with folder.lock(timeout_seconds=0):
        releases, current = read_releases(folder), live_release(folder)
        older = [entry for entry in releases.releases if entry.number < current.number]
        target = releases.get(to) if to is not None else (older[-1] if older else None)
        if target is None:
            kept = ", ".join(str(entry.number) for entry in releases.releases)
            which = f"no release {to}" if to is not None else f"no release before {current.number}"
            raise ReleaseError(
                f"Pipeline {name!r} has {which} to go back to; kept are: {kept}. `--to` names one, a newer one too."
            )
        if not readable(folder, target):
            raise ReleaseError(
                f"Pipeline {name!r}: the table or codec of release {target.number} is gone or damaged, so it cannot "
                f"be searched; release {current.number} stays live."
            )
        write_json(
            folder.releases,
            releases.model_copy(update={"live": target.number}).model_dump(mode="json"),
        )
    return current, target


def readable(folder: PipelineFolder, entry: Release) -> bool:
    """Whether a release's table version and its codec are there and are its own."""
    try:
        entry.spec.store.table(folder.tables, entry.table).rows(entry.version)
        return CodecChain.load(folder.codecs / entry.codec).id == entry.space.codec
    except (StoreError, CompressionError):
        return False


def _next(context: StepContext, space: Space, known: Releases, state: TableState) -> Release:
    """What releasing the newest table version makes."""
    codec, codec_file = load_codec(context, space), codec_path(context, space)
    assert codec_file is not None  # it was just loaded
    return Release(
        number=max(
            [
                known.live or 0,
                _last_in_history(context),
                *(entry.number for entry in known.releases),
            ]
        )
        + 1,
        table=state.table,
        version=state.version,
        rows=state.rows,
        space=stored_space(space, codec),
        codec=codec_file.name,
        cleaning=context.spec.preprocessing.clean.recipe,
        spec=context.spec.model_copy(update={"model": pinned_model(context)}),
        released_at=datetime.now(UTC),
        checks={},
    )


def _serve_alike(one: Release, other: Release) -> bool:
    """Whether two releases answer every query alike: same rows, same model, same cleaning, same
    codec, same search."""
    return all(
        getattr(one, name) == getattr(other, name)
        for name in ("table", "version", "space", "codec", "cleaning")
    ) and (one.spec.model == other.spec.model and searched_alike(one.spec, other.spec))


def searched_alike(one: PipelineSpec, other: PipelineSpec) -> bool:
    """Whether queries are cleaned and tables searched alike."""
    serving = [
        (spec.preprocessing, spec.store.model_dump(exclude={"keep_releases"}))
        for spec in (one, other)
    ]
    return serving[0] == serving[1]


def _last_in_history(context: StepContext) -> int:
    """The number of the last release that was ever made, 0 before; of one that was lost too."""
    found = [0]
    with contextlib.suppress(OSError):  # never written
        for line in context.folder.history.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # torn
                found.append(json.loads(line)["release"])
    return max(found)


def _remember(context: StepContext, made: Release) -> None:
    """Add a release to the history of the pipeline, which outlives the releases that are kept."""
    line = {
        "release": made.number,
        "released_at": made.released_at.isoformat(),
        "space": made.space.compressed(None).id,
        "codec": made.space.codec,
        "rows": made.rows,
        "metrics": made.metrics,
        "checks": made.checks,
        "forced": made.forced,
        **spent(context),
    }
    context.folder.quality.mkdir(parents=True, exist_ok=True)
    history = context.folder.history
    before = history.read_bytes() if history.exists() else b""
    torn = bool(before) and not before.endswith(b"\n")
    with history.open("a", encoding="utf-8") as file:
        file.write(("\n" if torn else "") + json.dumps(line, ensure_ascii=False) + "\n")


def _without_lost(context: StepContext, known: Releases) -> Releases:
    """The releases that can still be read; of others nothing is left to keep or to go back to."""
    kept = [entry for entry in known.releases if readable(context.folder, entry)]
    lost = [str(entry.number) for entry in known.releases if entry not in kept]
    if lost:
        context.progress.note(
            f"{context.spec.name}: release {', '.join(lost)} is gone or damaged and is dropped."
        )
    return known.model_copy(update={"releases": kept})


def _keep_tables(context: StepContext, releases: Releases, newest: str) -> None:
    """Tag the versions of kept releases before the pointer moves."""
    for name in {entry.table for entry in releases.releases} | {newest}:
        versions = {
            f"release-{entry.number}": entry.version
            for entry in releases.releases
            if entry.table == name
        }
        context.spec.store.table(context.warehouse.tables, name).keep(versions)


def pinned_model(context: StepContext) -> Provider:
    """The pipeline's model as a release names it: with copies of the user's files that may
    change."""
    return context.spec.model.pinned(context.warehouse.root / "calibration")


def _drop_tables(context: StepContext, releases: Releases) -> None:
    """Remove this pipeline's tables that no kept release needs."""
    store, folder = context.spec.store, context.warehouse.tables
    needed = {entry.table for entry in releases.releases}
    for name in store.names(folder):
        if name not in needed and name.rpartition("-")[0] == context.spec.name:
            store.drop(folder, name)


def _statistics(made: Release, releases: Releases) -> dict[str, Any]:
    return {
        "release": made.number,
        "live": releases.live,
        "table": made.table,
        "version": made.version,
        "rows": made.rows,
        "space": str(made.space),
        "kept_releases": [entry.number for entry in releases.releases],
        **made.metrics,
    }
