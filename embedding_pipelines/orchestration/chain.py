"""The steps of a pipeline as assets need them: a name, what it is made from, and how to do it.

One list, in the order the data takes. It stands in for a chain that the core will have itself;
nothing else in this package names the steps.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pyarrow as pa

from embedding_pipelines import schemas
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.progress import StepReport
from embedding_pipelines.spec.pipeline import PipelineSpec, fingerprint
from embedding_pipelines.steps.chain import StepContext
from embedding_pipelines.steps.chunks import write_chunks
from embedding_pipelines.steps.codec import fit_codec
from embedding_pipelines.steps.documents import write_documents
from embedding_pipelines.steps.embeddings import refuse_wrong_dimensions, write_embeddings
from embedding_pipelines.steps.release import release
from embedding_pipelines.steps.train import learn_model
from embedding_pipelines.steps.vector_store import update_vector_store
from embedding_pipelines.storage.warehouse import PipelineFolder


@dataclass(frozen=True)
class Run(StepContext):
    """One run of a pipeline; `spec.model` is the model of this run, whatever the file says."""

    refit: bool = False
    force_reason: str = ""

    @cached_property
    def folder(self) -> PipelineFolder:
        return self.warehouse.pipeline(self.spec.name)


@dataclass(frozen=True)
class Option:
    """A field of `Run` that a user may set for one run of a step."""

    name: str
    default: bool | str
    description: str


@dataclass(frozen=True)
class Step:
    """One step; `work` yields a report for each partition, or one in all."""

    name: str
    description: str
    work: Callable[[Run, Sequence[str]], Iterator[StepReport]]
    configuration: Callable[[PipelineSpec], str]  # fingerprint of the options that decide its data
    kinds: Callable[[PipelineSpec], set[str]]
    inputs: tuple[str, ...] = ()  # earlier steps
    partitioned: bool = False
    schema: Callable[[PipelineSpec], pa.Schema] | None = None  # of the rows, if it has rows
    # Column -> the column of an input that it is computed from, where their names differ.
    computed_from: Mapping[str, str] = field(default_factory=dict)
    rows: str = ""  # the statistic that counts its rows
    identity: tuple[str, ...] = ()  # the statistics that tell one version of its data from another
    options: tuple[Option, ...] = ()
    applies: Callable[[PipelineSpec], bool] = lambda spec: True


def steps_of(spec: PipelineSpec) -> list[Step]:
    """The steps that this pipeline has, in the order the data takes."""
    return [step for step in CHAIN if step.applies(spec)]


def _documents(run: Run, names: Sequence[str]) -> Iterator[StepReport]:
    yield write_documents(run)


def _chunks(run: Run, names: Sequence[str]) -> Iterator[StepReport]:
    for number, partition in enumerate(names, 1):
        yield write_chunks(run, partition, run.spec.model)
        run.progress.update("chunks", number, len(names), "partitions")


def _model(run: Run, names: Sequence[str]) -> Iterator[StepReport]:
    yield learn_model(run, run.spec.model)


def _embeddings(run: Run, names: Sequence[str]) -> Iterator[StepReport]:
    refuse_wrong_dimensions(run, run.spec.model)
    manifests = [run.folder.chunks.manifest(partition) for partition in names]
    total = sum(manifest.statistics["tokens"] for manifest in manifests if manifest)
    done = 0

    def advance(tokens: int) -> None:
        nonlocal done
        done += tokens
        run.progress.update("embeddings", done, total, "tokens")

    with EmbeddingCache(run.warehouse.cache) as cache:
        yield from write_embeddings(run, names, run.spec.model, cache, advance)


def _codec(run: Run, names: Sequence[str]) -> Iterator[StepReport]:
    yield fit_codec(run, run.spec.model.space, run.refit)


def _vector_store(run: Run, names: Sequence[str]) -> Iterator[StepReport]:
    yield update_vector_store(run, run.spec.model.space)


def _release(run: Run, names: Sequence[str]) -> Iterator[StepReport]:
    yield release(run, run.spec.model.space, run.force_reason)


CHAIN = (
    Step(
        "documents",
        "Canonical rows of the source in partitions. Unchanged files are skipped; bad records go "
        "to a table of their own, with file, row and reason.",
        _documents,
        lambda spec: fingerprint(spec.source),
        lambda spec: {spec.source.kind, "parquet"},
        schema=lambda spec: schemas.stored_documents_schema(spec.source.metadata_types),
        rows="documents",
    ),
    Step(
        "chunks",
        "Cleaned text, cut to what the model can take, with exact character offsets.",
        _chunks,
        lambda spec: fingerprint(spec.preprocessing.recipe),
        lambda spec: {"python", "parquet"},
        inputs=("documents",),
        partitioned=True,
        schema=lambda spec: schemas.chunks_schema(spec.source.metadata_types),
        computed_from={
            "chunk_id": "document_id",
            "start": "text",
            "end": "text",
            "tokens": "text",
            "truncated": "text",
            "chunk_digest": "text",
        },
        rows="chunks",
    ),
    Step(
        "model",
        "Trained once on the pipeline's own chunks, and again when its options change.",
        _model,
        lambda spec: fingerprint(spec.model),
        lambda spec: {spec.model.kind},
        inputs=("chunks",),
        identity=("revision",),
        applies=lambda spec: spec.model.learns,
    ),
    Step(
        "embeddings",
        "One vector per chunk. Texts whose vectors are in the cache never reach the model.",
        _embeddings,
        lambda spec: fingerprint(spec.model),
        lambda spec: {spec.model.kind, "parquet"},
        inputs=("chunks", "model"),
        partitioned=True,
        schema=lambda spec: schemas.embeddings_schema(1, ""),
        computed_from={"vector": "text"},
        rows="vectors",
    ),
    Step(
        "codec",
        "The compression: fitted once for this model, applied to documents and queries alike.",
        _codec,
        lambda spec: fingerprint(*spec.compression),
        lambda spec: {"numpy"},
        inputs=("embeddings",),
        identity=("codec",),
        options=(
            Option(
                "refit", False, "Refit the codec on the current embeddings; writes a new table."
            ),
        ),
    ),
    Step(
        "vector_store",
        "The searchable table, brought up to date by row differences, and its index.",
        _vector_store,
        lambda spec: fingerprint(spec.store.layout),
        lambda spec: {spec.store.kind},
        inputs=("chunks", "embeddings", "codec"),
        schema=lambda spec: schemas.table_schema(
            spec.source.metadata_types, pa.list_(pa.null()), ""
        ),
        computed_from={"partition": "document_id"},
        rows="rows",
        identity=("table", "version"),
    ),
    Step(
        "release",
        "Moves the live pointer to the newest table version, if all blocking checks passed.",
        _release,
        lambda spec: fingerprint(spec.evaluation, spec.store),
        lambda spec: {spec.store.kind},
        inputs=("vector_store",),
        rows="rows",
        identity=("release",),
        options=(
            Option(
                "force_reason",
                "",
                "Why to release a version that failed a check of its quality; empty: do not.",
            ),
        ),
    ),
)
