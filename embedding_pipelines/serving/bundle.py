"""A bundle: one release with all that answers from it, sealed, so that another machine can see
that it is whole and that its own model gives the same vectors.

    bundle.json       what it is, and size and digest of every other file
    golden.parquet    texts with the vectors that the model gave them
    golden_images.parquet   the same of images, where the model takes them
    sbom.cdx.json     the packages that the release needs
    licences/         of this package, and of the model where its files say so
    home/             laid out as a home: pipeline file, codec, table, and the model's files

Nothing is in it that was forgotten, or deleted before the release: the table is built from the
release's rows. With
shards, another machine can also go on from it (`imports.py`).
"""

import contextlib
import functools
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from embedding_pipelines import __version__
from embedding_pipelines.codes import encoded
from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.embedding.embed import embed_all
from embedding_pipelines.errors import (
    BundleError,
    CompressionError,
    ConfigError,
    EmbeddingPipelinesError,
    SpaceMismatchError,
    StoreError,
    counted,
    faults_in_words,
)
from embedding_pipelines.files import list_files, read_json, temporary_folder, write_json
from embedding_pipelines.objects import is_uri, open_bucket
from embedding_pipelines.progress import Progress, Silent
from embedding_pipelines.providers.base import EmbeddingModel, InputType
from embedding_pipelines.quality.checks.provider_is_unchanged import CANARIES
from embedding_pipelines.releases import (
    Release,
    Releases,
    live_release,
    read_releases,
    write_releases,
)
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import IMAGE, VECTOR
from embedding_pipelines.serving.archive import (
    DESCRIPTION,
    MAX_DESCRIPTION_BYTES,
    REFUSED,
    Entry,
    check_paths,
    entries_below,
    members,
    unpack_rest,
    write_archive,
)
from embedding_pipelines.serving.golden_images import least_cosine, write_golden_images
from embedding_pipelines.serving.permissions import Permissions
from embedding_pipelines.serving.pin import Pin, model_files, pin_of, require_portable
from embedding_pipelines.serving.sbom import licences_of, write_sbom
from embedding_pipelines.spec.load import find_pipeline, pipeline_files
from embedding_pipelines.spec.pipeline import NAME
from embedding_pipelines.steps.checks import CheckRecord
from embedding_pipelines.steps.vector_store import TableState, shard_digests, table_state
from embedding_pipelines.storage.pushed import Segment, pushed_log
from embedding_pipelines.storage.warehouse import Manifest, PipelineFolder, Shards, Warehouse
from embedding_pipelines.vectors import Vectors, cosine, to_matrix

HOME = "home"
GOLDEN, GOLDEN_IMAGES = "golden.parquet", "golden_images.parquet"
SBOM = "sbom.cdx.json"
LICENCES = "licences"
STEPS = ("documents", "chunks", "embeddings")
ARCHIVE = ".tar"  # the ending of a bundle that is an archive
LEAST_COSINE = 0.999  # between a golden vector and that of another machine
GOLDEN_ROWS = 16  # of the table, beside the canaries
SAME_CODES = 0.999  # cosine of a stored code and the one that the golden vector gives now
MAX_STATE_BYTES = 64 << 20  # of a JSON file in the home
# What else a run goes on from, beside shards. Records of the source's files are of one machine's own.
STATE = (
    *("pipeline.json", "embeddings/rejected.parquet", "model/trained.json", "model/vectors.bin"),
    *("codec/current.json", "codec/fit.json"),
)
WEIGHTS = re.compile(
    r"\.(safetensors|json|txt|model|md|bin|vec|glove|gz|kv|npy|pb|index|data-[\d\-of]+)"
)


class Description(BaseModel):
    """What `bundle.json` says."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1]
    pipeline: str
    release: int  # its number where it was made
    space_id: str  # of the vectors in the table
    cleaning: str
    codec: str  # file name
    table: str
    rows: int
    model: Pin
    has_shards: bool  # whether another machine can go on from it
    licences: dict[str, str]
    made_at: datetime
    made_by: str  # version of this package
    files: dict[str, Entry]


def write_bundle(
    warehouse: Warehouse,
    pipeline: str,
    to: Path,
    *,
    with_shards: bool = True,
    progress: Progress | None = None,
) -> Description:
    """Seal the live release of a pipeline, by its name: as an archive if `to` ends in `.tar`, else
    as a folder, which must not exist.

    Raises ReleaseError without a release, BundleError where `to` exists or the model cannot go
    along, SpaceMismatchError if the model has changed, BusyError while the pipeline runs.
    """
    if to.exists():
        raise BundleError(f"{to} exists. Name another file or folder, or remove it first.")
    folder, progress = warehouse.pipeline(pipeline), progress or Silent()
    with ExitStack() as stack:
        if with_shards:
            stack.enter_context(folder.lock("run", timeout_seconds=0))
        release = live_release(folder)
        if release.line and getattr(release.spec.model, "trained", None) is not None:
            raise BundleError(
                f"Pipeline {pipeline!r} migrates, and its trained model is where no other machine looks "
                f"for one. Say `embedding-pipelines migrate {pipeline} finish`, then bundle."
            )
        model = stack.enter_context(release.spec.model.open(warehouse.home))
        require_portable(release.spec.model, warehouse.home, release.spec.search.rerank)
        _note_omissions(warehouse, release, progress)
        draft = stack.enter_context(temporary_folder(to.absolute().parent, f".{to.name}-"))
        source = _Source(warehouse, folder, release, model)
        own = Warehouse(draft / HOME)
        copy = source.write_release(own, progress)
        has_shards = with_shards and source.write_state(own, copy, progress)
        source.write_golden(draft / GOLDEN)
        if release.spec.model.takes_images:
            write_golden_images(draft / GOLDEN_IMAGES, model)
        write_sbom(draft / SBOM, release.spec.model, pipeline)
        description = source.describe(draft, copy, has_shards)
        check_paths(description.files, _allowed(description))
        text = description.model_dump_json(indent=1)
        (draft / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
        _place_draft(draft, description, to)
    return description


def _note_omissions(warehouse: Warehouse, release: Release, progress: Progress) -> None:
    """Say what of a pipeline the bundle of its release is without."""
    pipeline, reranker = release.spec.name, release.spec.search.rerank
    newer = {each.id for _, each in pushed_log(warehouse, pipeline).changes(release.pushed)}
    if newer:
        progress.note(
            f"{counted(len(newer), 'document')} put or deleted since release {release.number}: "
            f"the bundle holds what the release does. Run {pipeline} first to have it newer."
        )
    if reranker and not (warehouse.home / reranker).is_dir():
        progress.note(
            f"The cross-encoder {reranker!r} is no folder of this home, so it does not go along: "
            "the machine that serves the bundle fetches it from the Hugging Face hub."
        )


def _place_draft(draft: Path, description: Description, to: Path) -> None:
    """Give the draft its name, as an archive if that is one's."""
    if to.suffix == ARCHIVE:
        archive = draft / f"{HOME}{ARCHIVE}"
        write_archive(draft, sorted(description.files), archive)
        archive.rename(to)
    else:
        to.mkdir(parents=True)
        for path in draft.iterdir():
            path.rename(to / path.name)


class _Source:
    """A release that is put into a bundle."""

    def __init__(
        self, warehouse: Warehouse, folder: PipelineFolder, release: Release, model: EmbeddingModel
    ) -> None:
        self.warehouse, self.folder, self.release, self.model = warehouse, folder, release, model
        self.codec = CodecChain.load(folder.codecs / release.codec)
        self.table = release.spec.store.table(folder.tables, release.table)
        if (now := model.space.with_codec(self.codec.id)).id != release.space.id:
            raise SpaceMismatchError(
                f"Release {release.number} of {release.spec.name!r} was made with {release.space}, and "
                f"the model of that name is now {now}. Put the model back, or run "
                f"`embedding-pipelines run {release.spec.name}`."
            )

    def write_release(self, own: Warehouse, progress: Progress) -> Release:
        """Pipeline file, model's files, codec, and a table of the release's rows alone."""
        name, release, target = self.release.spec.name, self.release, own.pipeline(self.name)
        for path in pipeline_files(self.warehouse.home):
            if path.stem == name and not self.migrates:
                _copy(path, own.home / "pipelines" / path.name)
        reranker = release.spec.search.rerank
        for path in model_files(release.spec.model, self.warehouse.home, reranker):
            _copy(path, own.home / path.relative_to(self.warehouse.home))
        _copy(self.folder.codecs / release.codec, target.codecs / release.codec)
        table = release.spec.store.table(own.tables, release.table.partition(".")[0])
        schema, count = self.table.schema(release.version), 0

        def rows() -> Iterator[pa.RecordBatch]:
            nonlocal count
            for batch in self.table.scan(schema.names, version=release.version):
                count += batch.num_rows
                progress.update("bundle", count, release.rows, "rows")
                columns = [batch[column] for column in schema.names]
                yield pa.RecordBatch.from_arrays(columns, schema=schema)

        table.apply(schema, [], rows())
        self.trained_rows = table.index(self.codec.metric, 0, release.spec.search.text_index)
        version = table.version
        assert version is not None
        if table.rows(version) != release.rows:
            raise StoreError(
                f"The bundle's table holds {table.rows(version)} rows of {release.rows}. Try again."
            )
        table_name = release.table.partition(".")[0]
        changes = {"table": table_name, "version": version, "line": ""}
        copy = release.model_copy(update=changes)
        table.tag({f"release-{release.number}": version})
        write_releases(target, Releases(live=copy.number, releases=[copy]))
        return copy

    @property
    def name(self) -> str:
        return self.release.spec.name

    @functools.cached_property
    def migrates(self) -> bool:
        """Whether the pipeline goes over to another model: its file is of two lines, the release of
        one."""
        with contextlib.suppress(ConfigError):  # without a file, or with a broken one
            return find_pipeline(self.name, self.warehouse.home).migration is not None
        return False

    def describe(self, draft: Path, copy: Release, has_shards: bool) -> Description:
        """What is in a draft, which has the release's copy and all but its description."""
        release, home, options = self.release, self.warehouse.home, self.release.spec.model
        return Description(
            format=1,
            pipeline=self.name,
            release=release.number,
            space_id=release.space.id,
            cleaning=release.cleaning,
            codec=release.codec,
            table=copy.table,
            rows=copy.rows,
            model=pin_of(options, self.model, home, release.spec.search.rerank),
            has_shards=has_shards,
            licences=licences_of(draft / LICENCES, options, home),
            made_at=datetime.now(UTC),
            made_by=__version__,
            files=entries_below(draft),
        )

    def write_state(self, own: Warehouse, copy: Release, progress: Progress) -> bool:
        """The steps' shards and records, if they are those that the release was made from; whether
        they are."""
        state, target = self._state(progress), own.pipeline(self.name)
        if state is None:
            return False
        self._copy_rows(own, state.partitions)
        self._copy_checks(target, copy)
        state = replace(
            state,
            table=copy.table,
            version=copy.version,
            trained_rows=self.trained_rows,
            trained_before={},
        )
        write_json(target.table_state, asdict(state))
        for path in list_files(self.warehouse.forgotten, f"{self.name}*.json"):
            if path.name.partition(".")[0] == self.name:
                _copy(path, own.forgotten / path.name)
        return True

    def _state(self, progress: Progress) -> TableState | None:
        """What the steps have made, of the shards as they are; None, once progress has why, if the
        release was made from something else."""
        release, state = self.release, None
        if self.migrates:
            progress.note(
                f"{self.name!r} migrates to another model, so the bundle can be served, but no run can "
                f"go on from it, and it is without the pipeline file. End that first: "
                f"`embedding-pipelines migrate {self.name}` says how."
            )
            return None
        try:
            spec = find_pipeline(self.name, self.warehouse.home)
            with Run(spec, self.warehouse) as run:
                state, digests = table_state(run), shard_digests(run)
        except (ConfigError, StoreError) as error:
            progress.note(f"{error} So the bundle can be served, but no run can go on from it.")
            return None
        if state is None or (state.table, state.version) != (release.table, release.version):
            progress.note(
                f"The live release {release.number} is not what the last run of {self.name!r} wrote, "
                "so the bundle can be served, but no run can go on from it. Run the pipeline, or "
                "roll back to its newest release, then bundle again."
            )
            return None
        return replace(state, partitions=digests)

    def _copy_rows(self, own: Warehouse, partitions: Iterable[str]) -> None:
        """The steps' shards and records, and what was pushed, which is a source, as files are."""
        target = own.pipeline(self.name)
        for name in STATE:
            if (path := self.folder.folder / name).exists():
                _copy(path, target.folder / name)
        for step in STEPS:
            shards: Shards = getattr(self.folder, step)
            for partition in partitions:
                manifest = shards.required(partition)
                for file in (f"{partition}.json", manifest.shard):
                    _copy(shards.folder / file, target.folder / step / file)
        words = pushed_log(self.warehouse, self.name).last_changes(self.release.pushed)
        if words:
            pushed_log(own, self.name).append(words)

    def _copy_checks(self, target: PipelineFolder, copy: Release) -> None:
        """What the checks say of the release, as of its copy."""
        figures = f"{self.release.table}-{self.release.version}.json"
        if (path := self.folder.quality / figures).exists():
            _copy(path, target.quality / f"{copy.table}-{copy.version}.json")
        checks = read_json(self.folder.checks)
        if checks is not None:
            write_json(target.checks, checks | {"table": copy.table, "version": copy.version})

    def write_golden(self, path: Path) -> None:
        """Canaries and texts of the table, with the vectors that the model gives them today, past
        the cache. Raises SpaceMismatchError if the table's rows hold others."""
        texts, codes = self._sample()
        rows = list[dict[str, Any]]()
        for input_type in get_args(InputType):
            every = [*CANARIES, *(texts if input_type == "document" else [])]
            vectors = _embed(every, self.model, input_type)
            if input_type == "document":
                self._compare(texts, vectors[len(CANARIES) :], codes)
            rows += [
                {"input_type": input_type, "text": text, VECTOR: vector.tolist()}
                for text, vector in zip(every, vectors, strict=True)
                if np.isfinite(vector).all()  # else the model rejects the text
            ]
        pq.write_table(pa.Table.from_pylist(rows, _golden_schema(self.model)), path)

    def _sample(self) -> tuple[list[str], list[Any]]:
        """Texts of the table's first rows, and their codes. A row with an image is of that, and the
        bundle holds none."""
        version, has_images = self.release.version, self.release.spec.source.has_images
        columns = ["text", VECTOR, *([IMAGE] if has_images else [])]
        for batch in self.table.scan(columns, version=version):
            texts = batch.filter(batch[IMAGE].is_null()) if has_images else batch
            part = texts.slice(0, GOLDEN_ROWS)
            return part["text"].to_pylist(), part[VECTOR].to_pylist()
        return [], []

    def _compare(self, texts: Sequence[str], vectors: Vectors, codes: Sequence[Any]) -> None:
        usable = [row for row in range(len(texts)) if np.isfinite(vectors[row]).all()]
        if not usable or self.codec.metric == "hamming":  # a bit may flip
            return
        now = to_matrix(encoded(self.release.spec.store, self.codec, vectors[usable])[VECTOR])
        then = np.array([codes[row] for row in usable])
        least = float(cosine(now.astype(np.float32), then.astype(np.float32), both_zero=1).min())
        if least < SAME_CODES:
            raise SpaceMismatchError(
                f"Release {self.release.number} of {self.name!r}: the model gives other vectors for "
                f"texts of the table than those stored there (cosine {least:.4f}). Run "
                f"`embedding-pipelines run {self.name} --re-embed`, then bundle again."
            )


def unpack(source: Path, folder: Path) -> Description:
    """Write the content of a bundle, an archive or a folder, to an empty folder, once each file is
    seen to be what the description says.

    Raises BundleError for one that is damaged or malicious; the folder then holds a part of it.
    """
    if not source.exists():
        raise BundleError(f"There is no bundle {str(source)!r}. Name a file or a folder.")
    files = members(source)
    name, size, content = next(files, ("", 0, None))
    if name != DESCRIPTION or content is None or size > MAX_DESCRIPTION_BYTES:
        raise BundleError(f"{source} is no bundle: it does not begin with {DESCRIPTION}. {REFUSED}")
    data = content.read(size)
    description = _parse(data)
    check_paths(description.files, _allowed(description))
    (folder / DESCRIPTION).write_bytes(data)
    unpack_rest(files, description.files, folder)
    return description


def released(
    folder: Path, description: Description, permissions: Permissions | None = None
) -> Release:
    """The release that an unpacked bundle holds, once it is seen to lead nowhere else, and to ask
    for no more than `permissions`. Raises BundleError."""
    home = Warehouse(folder / HOME)
    own = home.pipeline(description.pipeline)
    _check_state(folder / HOME, description)
    try:
        if permissions is not None:  # before a variable is replaced
            for path in (own.releases, own.releases_copy):
                permissions.check_texts(read_json(path))
        releases = read_releases(own)
        release = live_release(own)
        if permissions is not None:
            permissions.check_model(release.spec.model)
    except (EmbeddingPipelinesError, RecursionError, AttributeError, TypeError) as error:
        raise BundleError(f"The bundle's release cannot be used: {error} {REFUSED}") from None
    fits = {
        "pipeline": (release.spec.name, description.pipeline),
        "release": (release.number, description.release),
        "number of releases": (len(releases.releases), 1),
        "space": (release.space.id, description.space_id),
        "codec": (release.codec, description.codec),
        "cleaning": (release.cleaning, release.spec.preprocessing.clean.version),
        "table": (release.table, description.table),
        "rows": (release.rows, description.rows),
        "model": (release.space.with_codec(None).id, description.model.space_id),
    }
    reranker = release.spec.search.rerank
    place = PurePosixPath(reranker or "")
    if place.is_absolute() or ".." in place.parts:
        raise BundleError(f"The bundle's search.rerank lies outside of the home folder. {REFUSED}")
    for what, (one, other) in fits.items():
        if one != other:
            raise BundleError(f"The bundle's {what} is {one!r} and {other!r}. {REFUSED}")
    options = release.spec.model
    require_portable(options, folder / HOME)
    files = model_files(options, folder / HOME, reranker)
    there = {path.relative_to(folder / HOME).as_posix() for path in files}
    if there != set(description.model.files):
        raise BundleError(f"The bundle's model is not made of the files that it names. {REFUSED}")
    return release


def verify(
    folder: Path, description: Description, release: Release, model: EmbeddingModel
) -> float:
    """Compare an unpacked bundle with what this machine's model gives; the least cosine of a golden
    vector.

    Raises BundleError if a vector does not reproduce, if the table or the codec is not the
    release's, or if the model is of another space.
    """
    own = Warehouse(folder / HOME)
    try:
        codec = CodecChain.load(own.pipeline(description.pipeline).codecs / release.codec)
        table = release.spec.store.table(own.tables, release.table)
        if table.leads_elsewhere():
            raise BundleError(f"The bundle's table names files outside of it. {REFUSED}")
        rows = table.rows(release.version)
    except (CompressionError, StoreError) as error:
        raise BundleError(f"The bundle cannot be used: {error} {REFUSED}") from None
    if rows != release.rows:
        raise BundleError(f"The bundle's table holds {rows:,} rows of {release.rows:,}. {REFUSED}")
    space = model.space.with_codec(codec.id)
    if space.id != release.space.id:
        raise BundleError(
            f"The bundle is of {release.space}, and this machine has {space}. {description.model.fetch}"
        )
    least = 1.0
    golden = _read_golden(folder / GOLDEN, model)
    for input_type in get_args(InputType):
        rows_of_type = golden.filter(pa.compute.equal(golden["input_type"], input_type))
        texts = rows_of_type["text"].to_pylist()
        if not texts:
            continue
        now, then = _embed(texts, model, input_type), to_matrix(rows_of_type[VECTOR])
        least = min(least, float(np.nan_to_num(cosine(now, then)).min()))
    if release.spec.model.takes_images:
        least = min(least, least_cosine(folder / GOLDEN_IMAGES, model))
    if least < LEAST_COSINE:
        raise BundleError(
            f"The bundle's golden vectors do not reproduce on this machine: the least cosine is "
            f"{least:.4f}, and {LEAST_COSINE} is needed, so queries and stored vectors would not "
            f"belong together. {description.model.fetch}"
        )
    return least


def _parse(data: bytes) -> Description:
    try:
        description = Description.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[:1]
        raise BundleError(
            f"{DESCRIPTION} is not as this version writes it: {faults_in_words(first)[:240]}. {REFUSED}"
        ) from None
    if not NAME.fullmatch(description.pipeline):
        raise BundleError(f"{DESCRIPTION} names no pipeline. {REFUSED}")
    return description


def _place(pipeline: str) -> str:
    return f"{HOME}/data/warehouse/pipelines/{pipeline}"


def _allowed(description: Description) -> Callable[[str], bool]:
    """Which paths a bundle may hold. Beside what is this pipeline's own, the model's files."""
    name, table = description.pipeline, description.table
    own = f"{HOME}/data/warehouse"
    if table.rpartition("-")[0] != name or "/" in table or "/" in description.codec:
        raise BundleError(f"{DESCRIPTION} names a table or a codec of another place. {REFUSED}")
    pipeline = {f"{HOME}/pipelines/{name}{ending}" for ending in (".yaml", ".yml", ".json")}
    forgotten = {f"{own}/forgotten/{name}{ending}" for ending in (".json", ".copy.json")}
    pushed = f"{own}/pushed/{name}/{Segment(1, 1).name}"
    files = (
        {GOLDEN, GOLDEN_IMAGES, SBOM, f"{own}/tables/{table}.checksums.json", pushed}
        | pipeline
        | forgotten
    )
    folders = (f"{_place(name)}/", f"{own}/tables/{table}.lance/", f"{LICENCES}/")
    weights = {f"{HOME}/{path}" for path in description.model.files}
    # A home's own places, and those of tools, are no model's: what lay there would be obeyed.
    obeyed = re.compile(
        rf"{HOME}/(pipelines/|data/warehouse/(?!calibration/)|(.*/)?\.)", re.IGNORECASE
    )

    def is_allowed(path: str) -> bool:
        is_weight = path in weights and WEIGHTS.fullmatch(PurePosixPath(path).suffix) is not None
        is_weight = is_weight and obeyed.match(path) is None
        return path in files or path.startswith(folders) or is_weight

    return is_allowed


def _check_state(home: Path, description: Description) -> None:
    """Each record of the home that is read is one, of a size to read, of the right types, and names
    nothing outside of the bundle. Raises BundleError."""
    own = Warehouse(home).pipeline(description.pipeline)
    kinds: list[tuple[Path, type[Any]]] = [
        (own.table_state, TableState),
        (own.checks, CheckRecord),
        *((path, Manifest) for step in STEPS for path in list_files(own.folder / step, "b*.json")),
    ]
    for path in home.rglob("*.json"):
        if path.stat().st_size > MAX_STATE_BYTES:
            raise BundleError(f"The bundle's {path.name!r} is too large to be read. {REFUSED}")
    for path, kind in kinds:
        try:
            value = read_json(path)
            text = json.dumps(value)  # strict: of Python's own values a dict is no dataclass
            record = value and TypeAdapter(kind).validate_json(text, strict=True)
        except (StoreError, ValidationError, RecursionError):
            raise BundleError(f"The bundle's {path.name!r} is damaged. {REFUSED}") from None
        place = path.parent.relative_to(home.parent).as_posix()
        if isinstance(record, Manifest) and f"{place}/{record.shard}" not in description.files:
            raise BundleError(f"The bundle lacks the rows that {path.name!r} names. {REFUSED}")
        if isinstance(record, TableState | CheckRecord) and record.table != description.table:
            raise BundleError(f"The bundle's {path.name!r} is of another table. {REFUSED}")


def _golden_schema(model: EmbeddingModel) -> pa.Schema:
    vector = pa.list_(pa.float32(), model.space.dimensions)
    return pa.schema([("input_type", pa.string()), ("text", pa.string()), (VECTOR, vector)])


def _read_golden(path: Path, model: EmbeddingModel) -> pa.Table:
    try:
        golden = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise BundleError(f"The bundle has no golden texts: {error}. {REFUSED}") from None
    if not golden.schema.equals(_golden_schema(model)) or not golden.num_rows:
        raise BundleError(f"The bundle's golden texts are not as this model has them. {REFUSED}")
    if any(column.null_count for column in golden.columns):
        raise BundleError(f"The bundle's golden texts have gaps. {REFUSED}")
    return golden


def _embed(texts: Sequence[str], model: EmbeddingModel, input_type: InputType) -> Vectors:
    """float32[n, d], past the cache; NaN for a text that the model rejects. Those that are too long
    are cut."""
    return embed_all(texts, model, None, input_type, on_cut=lambda _: None).vectors


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


@contextmanager
def at_hand(source: str) -> Iterator[Path]:
    """The archive or folder of a bundle, as long as the body runs: what `source` names on this
    machine, or a copy of the archive that it names in an object store (s3://bucket/key). Raises
    BundleError if the store has none."""
    if not is_uri(source):
        yield Path(source)
        return
    with temporary_folder(Path(tempfile.gettempdir()), "embedding-pipelines-fetch-") as draft:
        path = draft / f"{HOME}{ARCHIVE}"
        bucket, key = open_bucket(source)
        with path.open("wb") as file:
            if not bucket.fetch(key, file):
                raise BundleError(f"There is no bundle {source}. Name another one.")
        yield path


@contextmanager
def opened(source: str) -> Iterator[Path]:
    """A home folder with what a bundle holds, proven, as long as the body runs. `source` is as that
    of `at_hand`. Raises BundleError for a bundle that is damaged or does not reproduce here."""
    with temporary_folder(Path(tempfile.gettempdir()), "embedding-pipelines-bundle-") as folder:
        with at_hand(source) as path:
            description = unpack(path, folder)
        release = released(folder, description)
        with release.spec.model.open(folder / HOME) as model:
            verify(folder, description, release, model)
        yield folder / HOME
