"""Releases: the table versions that may be searched, the live one, and rollback.

A release holds its whole configuration, with the options of the model that ran. So a search needs
no pipeline file, and an edited file never changes what is live.
"""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.errors import CompressionError, ReleaseError, StoreError
from embedding_pipelines.files import (
    append_line,
    is_absent,
    is_whole,
    parse_unsealed,
    read_json,
    read_lines,
    sync,
    write_json,
    write_lines,
)
from embedding_pipelines.space import Space
from embedding_pipelines.spec.ids import find_name
from embedding_pipelines.spec.load import find_file
from embedding_pipelines.spec.pipeline import KEPT_AS_WRITTEN, NAME, PipelineSpec
from embedding_pipelines.storage.warehouse import PipelineFolder, Warehouse
from embedding_pipelines.variables import expand_all

NAMES_OF_MODEL = ("model", "revision", "cls")

MODEL_CHECK = "provider_is_unchanged"


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
    forced: str = ""  # the reason to release it although checks failed
    override: str = ""  # the model that ran instead of the pipeline file's, if it was another
    pushed: int = 0  # the number up to which the table holds what was pushed
    line: str = ""  # NEW_LINE: of the model that the pipeline migrates to, until that has ended

    @property
    def title(self) -> str:
        """The beginning of a sentence. Number 0 is what was pushed before the first release."""
        name = self.spec.name
        return (
            f"Release {self.number} of {name!r}" if self.number else f"What was pushed to {name!r}"
        )


class Releases(BaseModel):
    """All stored releases, oldest first, and the number of the live one."""

    live: int | None = None
    releases: list[Release] = []

    def get(self, number: int | None) -> Release | None:
        return next((release for release in self.releases if release.number == number), None)

    def of_line(self, line: str) -> list[Release]:
        """Those of one line of a pipeline that migrates, oldest first."""
        return [release for release in self.releases if release.line == line]

    @property
    def newest(self) -> Release | None:
        return self.releases[-1] if self.releases else None

    def previous(self, number: int) -> Release | None:
        """The newest release that is older than `number`, and of its line."""
        own = self.get(number)
        older = [entry for entry in reversed(self.releases) if entry.number < number]
        return next((entry for entry in older if own is None or entry.line == own.line), None)

    @property
    def numbers(self) -> str:
        return ", ".join(str(release.number) for release in self.releases)


def read_releases(folder: PipelineFolder) -> Releases:
    """From the copy if the file is lost or damaged. Raises StoreError if both are, or if another
    version of this package wrote them."""
    try:
        record = read_json(folder.releases) or read_json(folder.releases_copy)
    except StoreError:
        if not is_whole(folder.releases_copy):
            raise
        record = read_json(folder.releases_copy)
    record, written = _expand(record or {})
    try:
        releases = Releases.model_validate(record)
        for release in releases.releases:
            release.spec.keep_variables(written)
        return releases
    except ValidationError as error:
        raise StoreError(
            f"{folder.releases} cannot be read by this version ({error.error_count()} fields "
            f"differ). Delete {folder.folder} and run `embedding-pipelines run "
            f"{folder.folder.name}`: vectors in the embedding cache are not computed again."
        ) from error


def adopt_releases(folder: PipelineFolder) -> bool:
    """Take over releases and history of a version that wrote no checksums and no copy; whether
    there were any. What such a file names is verified by nobody but its own shape."""
    if folder.releases_copy.exists() or is_whole(folder.releases):
        return False
    record = parse_unsealed(folder.releases.read_bytes()) if folder.releases.exists() else None
    try:
        if record is None or not Releases.model_validate(_expand(record)[0]).releases:
            return False
    except ValidationError:
        return False
    if folder.history.exists():
        lines = map(parse_unsealed, folder.history.read_bytes().splitlines())
        write_lines(folder.history, [line for line in lines if line and "release" in line])
    for path in (folder.releases, folder.releases_copy):
        write_json(path, record)
    return True


def write_releases(folder: PipelineFolder, releases: Releases) -> None:
    """Move the pointer, once all that it names is on the disk: a power cut leaves the old pointer
    with all of its releases, or the new one with all of its own."""
    tables = {entry.table: entry.spec.store for entry in releases.releases}
    folder.sync(store.table(folder.tables, name).folder_of_files for name, store in tables.items())
    # The copy first: it never names a table that was dropped since.
    for path in (folder.releases_copy, folder.releases):
        write_json(path, _as_written(releases))
    sync(folder.folder)


def _as_written(releases: Releases) -> dict[str, Any]:
    """The record with `${NAME}` where a pipeline file has it, since its value may be a secret. What
    names the model stays as it ran: a release outlives a change of the variable."""
    record = releases.model_dump(mode="json")
    for release, values in zip(releases.releases, record["releases"], strict=True):
        as_it_ran = {name: values["spec"]["model"].get(name) for name in NAMES_OF_MODEL}
        values["spec"] = release.spec.as_written(values["spec"])
        values["spec"]["model"] |= {name: value for name, value in as_it_ran.items() if value}
    return record


def _expand(record: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The record with the values of its variables, but for options that are kept as written."""
    written: dict[str, str] = {}
    releases = record.get("releases")
    if not isinstance(releases, list):
        return record, written
    for release in releases:
        spec = release.get("spec") if isinstance(release, dict) else None
        if not isinstance(spec, dict):
            continue
        release["spec"], more = expand_all(spec)
        for section, name in KEPT_AS_WRITTEN:
            if isinstance(spec.get(section), dict) and name in spec[section]:
                release["spec"][section][name] = spec[section][name]
        written |= more
    return record, written


def tagged_versions(releases: Releases, table: str) -> dict[str, int]:
    """The versions of one table that releases name, by tag."""
    own = [entry for entry in releases.releases if entry.table == table]
    return {f"release-{entry.number}": entry.version for entry in own}


def find_released(warehouse: Warehouse, pipeline: str | int) -> str:
    """The name of the pipeline with this name or number; it may have lost its file since it was
    released. Raises ConfigError if there is none."""
    name = find_name(warehouse.home, str(pipeline))
    # Another name may come from a request, and be a path.
    if not NAME.fullmatch(name) or not warehouse.pipeline(name).folder.exists():
        find_file(name, warehouse.home)
    return name


def live_release(folder: PipelineFolder) -> Release:
    """The release that searches read. Raises ReleaseError without one."""
    releases = read_releases(folder)
    release = releases.get(releases.live)
    if release is None:
        raise no_release(folder)
    return release


def no_release(folder: PipelineFolder) -> ReleaseError:
    """That a pipeline has none yet, what holds it back, and what to do."""
    name = folder.folder.name
    remedy = _held_back(folder) or _failure(folder) or f"Run `embedding-pipelines run {name}`."
    return ReleaseError(f"Pipeline {name!r} has no release yet. {remedy}")


def doubts(folder: PipelineFolder, release: Release) -> list[str]:
    """What the newest checks say against searching a release: that its model has changed."""
    try:
        record = read_json(folder.of_line(release.line).checks) or {}
    except StoreError:  # a run makes it anew
        return []
    failed = [check["name"] for check in record.get("checks", ()) if not check["passed"]]
    if record.get("table") != release.table or MODEL_CHECK not in failed:  # of another space
        return []
    return [
        f"The model was changed under its name since release {release.number}: queries and stored "
        f"vectors do not belong together (`embedding-pipelines status {folder.folder.name}`)."
    ]


def release_anyway(name: str) -> str:
    """How to release what quality checks block."""
    command = f"embedding-pipelines release {name} --force --reason '…'"
    return f"To release it all the same: `{command}`."


def _held_back(folder: PipelineFolder) -> str:
    """Which checks hold back what the last run wrote, as they are on record, and what to do; empty
    if none does."""
    record, state = read_json(folder.checks) or {}, read_json(folder.table_state) or {}
    if any(record.get(key) != state.get(key) for key in ("table", "version")):
        return ""
    blocking = [
        check
        for check in record.get("checks", ())
        if not check["passed"] and check["effect"] == "block"
    ]
    lines = [f"  {check['name']}: {check['sentence']}" for check in blocking]
    if not lines:
        return ""
    run = f"`embedding-pipelines run {folder.folder.name}`"
    return "\n".join([f"Checks hold back what the last run wrote; mend it and {run}:", *lines])


def _failure(folder: PipelineFolder) -> str:
    """Why the last run failed, and what to do; empty if none did."""
    try:
        problem = (read_json(folder.activity) or {}).get("problem")
    except (OSError, StoreError):  # it decides nothing
        return ""
    run = f"`embedding-pipelines run {folder.folder.name}`"
    return f"Its last run failed; mend it and {run}:\n  {problem}" if problem else ""


def rollback(folder: PipelineFolder, to: int | None) -> tuple[Release, Release]:
    """Move the live pointer to the previous release, or to release `to`; returns (from, to).

    Raises ReleaseError if there is none, or if it is not readable.
    """
    name = folder.folder.name
    with folder.lock(timeout_seconds=0):
        releases, current = read_releases(folder), live_release(folder)
        target = releases.previous(current.number) if to is None else releases.get(to)
        if target is None:
            which = f"before {current.number}" if to is None else f"{to}"
            raise ReleaseError(
                f"Pipeline {name!r} has no release {which}; it has {releases.numbers}. Name one, "
                "older or newer, with `--to`."
            )
        if not is_readable(folder, target):
            others = [
                str(entry.number)
                for entry in releases.releases
                if entry not in (current, target) and is_readable(folder, entry)
            ]
            way = (
                f"With `--to` you can go to {', '.join(others)}."
                if others
                else "No other release can be gone to; what changes in the source is released anew."
            )
            raise ReleaseError(
                f"Pipeline {name!r}: release {target.number} cannot be searched, since its table "
                f"or codec is gone or damaged. Release {current.number} stays live. {way}"
            )
        write_releases(folder, releases.model_copy(update={"live": target.number}))
    return current, target


def is_readable(folder: PipelineFolder, release: Release) -> bool:
    """Whether a release's table version and its own codec can be opened now."""
    try:
        release.spec.store.table(folder.tables, release.table).rows(release.version)
        return CodecChain.load(folder.codecs / release.codec).id == release.space.codec
    except (StoreError, CompressionError, OSError):
        return False


def is_gone(folder: PipelineFolder, release: Release) -> bool:
    """Whether a release's table version or its codec is no longer there, for sure.

    What is there and cannot be read may be readable again later. Raises OSError where not even that
    can be known.
    """
    table = release.spec.store.table(folder.tables, release.table)
    return is_absent(folder.codecs / release.codec) or table.lacks(release.version)


def search_alike(one: PipelineSpec, other: PipelineSpec) -> bool:
    """Whether two pipelines clean queries and search tables in the same way."""
    stores = [spec.store.model_dump(exclude={"keep_releases"}) for spec in (one, other)]
    same = one.preprocessing == other.preprocessing and one.search == other.search
    return same and stores[0] == stores[1]


def serve_alike(one: Release, other: Release) -> bool:
    """Whether two releases return the same results for every query."""
    names = ("table", "version", "space", "codec", "cleaning")
    same = all(getattr(one, name) == getattr(other, name) for name in names)
    same = same and one.spec.permissions == other.spec.permissions
    return same and one.spec.model == other.spec.model and search_alike(one.spec, other.spec)


def newest_number(folder: PipelineFolder) -> int:
    """The number of the newest release in the history, which may be lost itself; 0 before the
    first."""
    return max((line["release"] for line in read_history(folder)[0]), default=0)


def read_history(folder: PipelineFolder) -> tuple[list[dict[str, Any]], int]:
    """The lines of the history, oldest first, and how many others are damaged: a power cut tears
    lines, and leaves zeros for others."""
    return read_lines(folder.history)


def append_history(folder: PipelineFolder, release: Release, usage: dict[str, float]) -> None:
    """Add a release to the pipeline's history, which outlives the release."""
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
    entries, damaged = read_history(folder)
    if not damaged:
        append_line(folder.history, line)
    else:
        write_lines(folder.history, [*entries, line])
