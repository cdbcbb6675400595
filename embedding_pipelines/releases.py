"""Releases: which table versions may be searched, which one is live, and the way back.

A release holds the whole configuration that it was made with, the options of the model that ran
included, so searching it needs no pipeline file: an edited file never changes what is live.
"""

import contextlib
import json
from datetime import datetime

from pydantic import BaseModel, ConfigDict, ValidationError

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.errors import CompressionError, ReleaseError, StoreError
from embedding_pipelines.files import read_json, write_json
from embedding_pipelines.space import Space
from embedding_pipelines.spec.pipeline import PipelineSpec
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
    cleaning: str  # version of the cleaning of documents, and so of queries
    spec: PipelineSpec  # `spec.model` are the options of the model that ran
    released_at: datetime
    checks: dict[str, bool]
    metrics: dict[str, float] = {}
    forced: str = ""  # why it was released though checks failed
    override: str = ""  # the model that ran in place of the pipeline file's; empty: the file's own


class Releases(BaseModel):
    """All releases that are kept, oldest first, and which one is live."""

    live: int | None = None
    releases: list[Release] = []

    def get(self, number: int | None) -> Release | None:
        return next((release for release in self.releases if release.number == number), None)


def read_releases(folder: PipelineFolder) -> Releases:
    """Raises StoreError if another version of this package wrote them, or somebody edited them."""
    try:
        return Releases.model_validate(read_json(folder.releases) or {})
    except ValidationError as error:
        raise StoreError(
            f"{folder.releases} cannot be read by this version ({error.error_count()} fields "
            f"differ). Delete {folder.folder} and run `embedding-pipelines run "
            f"{folder.folder.name}`: vectors in the embedding cache are not computed again."
        ) from error


def write_releases(folder: PipelineFolder, releases: Releases) -> None:
    write_json(folder.releases, releases.model_dump(mode="json"))


def live_release(folder: PipelineFolder) -> Release:
    """The release that searches read. Raises ReleaseError if there is none yet."""
    releases = read_releases(folder)
    release = releases.get(releases.live)
    if release is None:
        name = folder.folder.name
        raise ReleaseError(
            f"Pipeline {name!r} has no release yet. Run `embedding-pipelines run {name}`."
        )
    return release


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
            numbers = ", ".join(str(entry.number) for entry in releases.releases)
            which = f"no release {to}" if to is not None else f"no release before {current.number}"
            raise ReleaseError(
                f"Pipeline {name!r} has {which} to go back to; kept are: {numbers}. `--to` names "
                "one, a newer one too."
            )
        if not is_readable(folder, target):
            raise ReleaseError(
                f"Pipeline {name!r}: the table or codec of release {target.number} is gone or "
                f"damaged, so it cannot be searched; release {current.number} stays live."
            )
        write_releases(folder, releases.model_copy(update={"live": target.number}))
    return current, target


def is_readable(folder: PipelineFolder, release: Release) -> bool:
    """Whether a release's table version and its codec are there and are its own."""
    try:
        release.spec.store.table(folder.tables, release.table).rows(release.version)
        return CodecChain.load(folder.codecs / release.codec).id == release.space.codec
    except (StoreError, CompressionError):
        return False


def search_alike(one: PipelineSpec, other: PipelineSpec) -> bool:
    """Whether queries are cleaned and tables searched alike."""
    left, right = (
        (spec.preprocessing, spec.store.model_dump(exclude={"keep_releases"}))
        for spec in (one, other)
    )
    return left == right


def serve_alike(one: Release, other: Release) -> bool:
    """Whether two releases answer every query alike: same rows, same model, same cleaning, same
    codec, same search."""
    names = ("table", "version", "space", "codec", "cleaning")
    same = all(getattr(one, name) == getattr(other, name) for name in names)
    return same and one.spec.model == other.spec.model and search_alike(one.spec, other.spec)


def newest_number(folder: PipelineFolder) -> int:
    """The number of the newest release on record in the history, 0 before the first; the release
    itself may be lost."""
    numbers = [0]
    with contextlib.suppress(OSError):  # never written
        for line in folder.history.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # torn
                numbers.append(json.loads(line)["release"])
    return max(numbers)


def append_history(folder: PipelineFolder, release: Release, usage: dict[str, float]) -> None:
    """Add a release to the pipeline's history, which outlives the releases that are kept."""
    line = {
        "release": release.number,
        "released_at": release.released_at.isoformat(),
        "space": release.space.with_codec(None).id,
        "codec": release.space.codec,
        "rows": release.rows,
        "metrics": release.metrics,
        "checks": release.checks,
        "forced": release.forced,
        **usage,
    }
    folder.quality.mkdir(parents=True, exist_ok=True)
    before = folder.history.read_bytes() if folder.history.exists() else b""
    torn = bool(before) and not before.endswith(b"\n")
    with folder.history.open("a", encoding="utf-8") as file:
        file.write(("\n" if torn else "") + json.dumps(line, ensure_ascii=False) + "\n")
