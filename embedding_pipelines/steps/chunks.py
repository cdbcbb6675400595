"""chunks: the documents of one partition become cleaned pieces of text that the model can take.

A document that has not changed keeps its chunks; only new and changed ones are cut again.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from embedding_pipelines.engines.base import Advance, Shared, Worker
from embedding_pipelines.errors import EngineError
from embedding_pipelines.preprocessing.base import Counts
from embedding_pipelines.preprocessing.chunk import Cutter
from embedding_pipelines.preprocessing.edits import Edits
from embedding_pipelines.preprocessing.tokens import TELL_UNKNOWN
from embedding_pipelines.progress import StepReport
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import DOCUMENT_DIGEST, chunks_schema
from embedding_pipelines.spec.pipeline import PipelineSpec, fingerprint
from embedding_pipelines.steps.base import Options, Reports, Step
from embedding_pipelines.steps.elsewhere import Nothing, RunKit, RunWork, map_shards
from embedding_pipelines.storage.warehouse import Manifest, Shards

IDENTITY = ("document_id", DOCUMENT_DIGEST)


class ChunksStep(Step):
    name = "chunks"
    inputs = ("documents",)
    partitioned = True
    description = "Cleaned text, cut to what the model can take, with exact character offsets."
    technologies = ("python", "parquet")
    sentence = "{chunks}, {tokens}, {empty}"
    extras: ClassVar[Mapping[str, str]] = {
        "images": "{:,} of them images",
        "unknown_tokens": "{} unknown to the model",
        "html": "{} freed of HTML markup",
        "truncated": "{} cut at the model's limit",
    }
    row_statistic = "chunks"
    lineage: ClassVar[Mapping[str, str]] = {
        "chunk_id": "document_id",
        **dict.fromkeys(
            ("start", "end", "tokens", "unknown_tokens", "unseen_tokens", "chunk_digest"), "text"
        ),
    }

    def shards(self, run: Run) -> Shards:
        return run.folder.chunks

    def configuration(self, spec: PipelineSpec) -> str:
        return fingerprint(spec.preprocessing.version)

    def columns(self, spec: PipelineSpec) -> pa.Schema:
        return chunks_schema(spec.source.metadata_types)

    def current(self, run: Run, partition: str | None = None) -> StepReport | None:
        assert partition is not None
        inputs = run.folder.documents.required(partition).digest
        manifest = run.folder.chunks.current(partition, inputs, _configuration(run))
        return _report(manifest, partition, changed=False) if manifest else None

    def work(self, run: Run, partitions: Sequence[str], options: Options = None) -> Reports:
        """Raises ConfigError if the chunk size does not fit the model, ProviderError if the model
        cannot be loaded."""
        stale, done = list[str](), 0

        def advance(amount: int) -> None:
            nonlocal done
            done += amount
            run.progress.update(self.name, done, len(partitions), "partitions")

        for partition in partitions:
            report = self.current(run, partition)
            if report is None:
                stale.append(partition)
            else:
                yield report
                advance(1)
        if not stale:
            return
        fresh: dict[str, Counts] = {}  # by partition, of what was cut now
        results = map_shards(run, _Cutting(run, advance), stale)
        with closing(results):  # type: ignore[type-var]
            for report, counts in results:
                fresh[report.partition] = counts
                yield report
        _tell_unknown(run, fresh)


class _Cutting(RunWork):
    """The step's work, as an engine is given it."""

    def here(self) -> "_Cutter":
        return _Cutter(self._run)

    def kit(self) -> "_Kit":
        return _Kit(*self.identity(), _configuration(self._run))


@dataclass(frozen=True)
class _Kit(RunKit):
    """With how everybody cuts."""

    configuration: str

    def open_shared(self) -> Nothing:
        return Nothing()

    def open(self, shared: Shared, cores: int | None) -> "_Cutter":
        """Raises EngineError for a machine that has another version, folder or tokenizer."""
        run = self.open_run()
        if _configuration(run) != self.configuration:
            raise EngineError("its model has another tokenizer, or another limit")
        return _Cutter(run)


class _Cutter(Worker):
    """Cuts the documents of partitions, one after the other."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def work(
        self, partitions: Sequence[str], advance: Advance
    ) -> Iterator[tuple[StepReport, Counts]]:
        run = self._run
        cutter = run.spec.preprocessing.cutter(run.model.tokenizer, run.model.limits.max_tokens)
        for partition in partitions:
            yield _write(run, partition, cutter)
            advance(1)


def _configuration(run: Run) -> str:
    """Fingerprint of how a text is cleaned and cut, the tokenizer's own definition included."""
    preprocessing, limit = run.spec.preprocessing, str(run.model.limits.max_tokens)
    columns = str(chunks_schema(run.spec.source.metadata_types))
    return fingerprint(preprocessing.version, limit, columns, run.model.tokenizer_digest)


def _write(run: Run, partition: str, cutter: Cutter) -> tuple[StepReport, Counts]:
    """The report of the partition, and the counts of what had to be cut for it."""
    documents, shards, configuration = run.folder.documents, run.folder.chunks, _configuration(run)
    source, before = documents.required(partition), shards.manifest(partition)
    special = run.model.tokenizer.num_special_tokens_to_add(is_pair=False)
    is_comparable = before is not None and before.configuration == configuration
    # Rows of chunks that stay, and of documents whose chunks do.
    stays, is_cut = _compared(shards, documents, partition, is_comparable)
    fresh, counts = Counts(), Counts(documents=is_cut.true_count)
    embedded = run.folder.embeddings.manifest(partition)
    # What was cut and never embedded is no state to count edits from: more than the last ones are.
    is_counted = is_comparable and before and embedded and embedded.inputs == before.digest
    edits = Edits(special) if is_counted else None
    statistics: dict[str, int] = {}
    images = run.spec.source.has_images

    def rows() -> Iterator[pa.RecordBatch]:
        for batch, mask in _masked(shards.read(partition) if is_comparable else (), stays):
            if edits:
                edits.add_before(batch.filter(pc.invert(mask)))
            reused = batch.filter(mask)
            counts.chunks += reused.num_rows
            counts.tokens += pc.sum(reused["tokens"]).as_py() or 0
            counts.images += len(reused["image"]) - reused["image"].null_count if images else 0
            counts.unknown_tokens += pc.sum(reused["unknown_tokens"]).as_py() or 0
            counts.unseen_tokens += pc.sum(reused["unseen_tokens"]).as_py() or 0
            counts.truncated += pc.sum(pc.greater(reused["unseen_tokens"], 0)).as_py() or 0
            yield reused
        masked = _masked(documents.read(partition), is_cut)
        changed = (batch.filter(pc.invert(mask)) for batch, mask in masked)
        for batch in run.spec.preprocessing.process(changed, cutter, fresh, images):
            if edits:
                edits.add_after(batch)
            yield batch
        added = asdict(fresh)
        statistics.update({name: count + added[name] for name, count in asdict(counts).items()})
        statistics["reused_documents"] = is_cut.true_count
        if edits:
            statistics["edited_tokens"] = edits.tokens

    schema = chunks_schema(run.spec.source.metadata_types)
    manifest = shards.write(partition, schema, rows(), source.digest, configuration, statistics)
    return _report(manifest, partition, changed=True), fresh


def _report(manifest: Manifest, partition: str, changed: bool) -> StepReport:
    statistics = {**manifest.statistics, "size_bytes": manifest.size_bytes}
    return StepReport(ChunksStep.name, changed, statistics, partition)


def _tell_unknown(run: Run, fresh: Mapping[str, Counts]) -> None:
    """Say so where the model lacks the words of what was just cut, by partition: nothing else would
    show it, since texts of unknown tokens have vectors as all others do."""
    unknown = sum(counts.unknown_tokens for counts in fresh.values())
    if not unknown:
        return
    special = run.model.tokenizer.num_special_tokens_to_add(is_pair=False)
    tokens = sum(
        counts.tokens - special * (counts.chunks - counts.images) for counts in fresh.values()
    )
    if unknown / tokens < TELL_UNKNOWN:
        return
    worst = max(fresh, key=lambda partition: fresh[partition].unknown_tokens)
    batch = next(run.folder.chunks.read(worst, ["text", "unknown_tokens"]))
    text = batch["text"][int(batch["unknown_tokens"].to_numpy().argmax())].as_py()
    space = run.model.space
    run.progress.note(
        f"{unknown / tokens:.0%} of the tokens are unknown to the model: {space.provider}:"
        f"{space.model} reads nothing in them, as in {text[:40]!r}, and gives texts of such words "
        "much the same vector. Choose a model that was trained on their language."
    )


def _compared(
    chunks: Shards, documents: Shards, partition: str, is_comparable: bool
) -> tuple[pa.BooleanArray, pa.BooleanArray]:
    """Which rows of a partition's chunks are of documents that are the same, bool[n], and which of
    its documents have these chunks, bool[m]; none of chunks that are not comparable."""
    now = _identities(documents, partition)
    before = _identities(chunks, partition) if is_comparable else now.slice(0, 0)
    masks = pc.is_in(before, value_set=now), pc.is_in(now, value_set=before)
    stays, is_cut = (mask.combine_chunks() for mask in masks)
    return stays, is_cut


def _identities(shards: Shards, partition: str) -> pa.ChunkedArray:
    """What makes the document of each row itself."""
    batches = shards.read(partition, [*IDENTITY])
    parts = [
        pc.binary_join_element_wise(*(batch[name].cast(pa.binary()) for name in IDENTITY), b"")
        for batch in batches
    ]
    return pa.chunked_array(parts, pa.binary())


def _masked(
    batches: Iterable[pa.RecordBatch], mask: pa.BooleanArray
) -> Iterator[tuple[pa.RecordBatch, pa.BooleanArray]]:
    """Each batch with its part of a mask over all rows."""
    first = 0
    for batch in batches:
        yield batch, mask.slice(first, batch.num_rows)
        first += batch.num_rows
