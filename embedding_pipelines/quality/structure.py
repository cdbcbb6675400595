"""verify: what must hold before a table version may be released. Each check says what it compared.

The checks of this file concern the table itself; what it is worth is judged by `quality.py`.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.embedding.budget import BudgetTracker
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.errors import ReleaseError
from embedding_pipelines.files import read_json, write_json
from embedding_pipelines.progress import StepReport
from embedding_pipelines.providers.base import NORM_TOLERANCE, Provider
from embedding_pipelines.quality.check import Check
from embedding_pipelines.quality.checks import check_quality, wanted_checks
from embedding_pipelines.quality.measure import Candidate
from embedding_pipelines.quality.queries import evaluation_files
from embedding_pipelines.schemas import SPACE_ID_KEY, VECTOR
from embedding_pipelines.space import Space
from embedding_pipelines.spec.pipeline import fingerprint
from embedding_pipelines.steps.chain import StepContext
from embedding_pipelines.steps.codec import load_codec
from embedding_pipelines.steps.documents import known_files
from embedding_pipelines.steps.embeddings import without_vector
from embedding_pipelines.steps.vector_store import TableState, open_table, stored_space, table_state
from embedding_pipelines.stores.base import Table
from embedding_pipelines.vectors import to_matrix


def verify(
    context: StepContext, provider: Provider, cache: EmbeddingCache
) -> tuple[StepReport, list[Check]]:
    """Check the newest version of the table, take its measures, and remember both for `release`.

    What passed before is not looked at again, until the table, `evaluation:` or one of its files
    changes.
    """
    space, codec = provider.space, load_codec(context, provider.space)
    table, name = open_table(context, codec, space)
    state = table_state(context)
    if state is None or (state.table, state.version) != (name, table.version):
        raise ReleaseError(
            f"Pipeline {context.spec.name!r}: the table was not completely written with the present "
            f"configuration. Run `embedding-pipelines run {context.spec.name}`."
        )
    known = current_checks(context)
    if known is not None and not any(check.blocks for check in known):
        return _report(context, known, changed=False), known
    checks = [
        _counts_add_up(context, table),
        _vectors_are_sound(context, space, codec, table),
        _dimensions_match(context, space, codec, table),
        _space_is_one(context, space, codec, table),
    ]
    metrics: dict[str, float] = {}
    broken = ", ".join(check.name for check in checks if not check.passed)
    if broken:  # what is broken cannot be measured
        said = f"Not measured, since {broken} failed."
        checks += [
            Check(quality, False, said, effect="warn") for quality in wanted_checks(context.spec)
        ]
    else:
        budget, has_index = BudgetTracker.of(context.spec.budget, provider), state.trained_rows > 0
        candidate = Candidate(
            context, provider, cache, codec, table, name, state.version, has_index, budget
        )
        judged, metrics = check_quality(candidate, state.rows)
        checks += judged
    verified = {
        "table": name,
        "version": state.version,
        "made_from": _made_from(context, state),
        "metrics": metrics,
        "checks": [asdict(check) for check in checks],
    }
    write_json(context.folder.verified, verified)
    return _report(context, checks, changed=True), checks


def current_checks(context: StepContext) -> list[Check] | None:
    """As `known_checks`; None too if a check could not be told and has to be asked again."""
    checks = known_checks(context)
    return checks if checks is not None and all(check.told for check in checks) else None


def known_checks(context: StepContext) -> list[Check] | None:
    """The outcomes for the table as it is and all that they depend on; None if it was never checked
    so."""
    known, state = read_json(context.folder.verified), table_state(context)
    if (
        not known
        or state is None
        or (known["table"], known["version"]) != (state.table, state.version)
    ):
        return None
    if known["made_from"] != _made_from(context, state):
        return None
    return [Check(**check) for check in known["checks"]]


def current_verify(context: StepContext) -> StepReport | None:
    """The report of checks that were made and need not be made again, None if there is something to
    check."""
    known = current_checks(context)
    if known is None or any(check.blocks for check in known):
        return None
    return _report(context, known, changed=False)


def _report(context: StepContext, checks: list[Check], changed: bool) -> StepReport:
    metrics = (read_json(context.folder.verified) or {})["metrics"]
    return StepReport(
        "checks",
        changed,
        {"checks": len(checks), "passed": sum(c.passed for c in checks), **metrics},
    )


def _made_from(context: StepContext, state: TableState) -> str:
    files = [
        f"{path} {stat.st_size} {stat.st_mtime_ns}"
        for path in evaluation_files(context)
        if (stat := _stat(path))
    ]
    partitions = json.dumps(state.partitions, sort_keys=True)
    spec = context.spec
    wanted = (spec.model, *spec.compression, spec.store, spec.preprocessing, spec.evaluation)
    return fingerprint(partitions, *wanted, str(spec.seed), str(spec.budget), *files)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _counts_add_up(context: StepContext, table: Table) -> Check:
    folder, names = context.folder, context.spec.partition_names
    chunk_statistics = [
        made.statistics for partition in names if (made := folder.chunks.manifest(partition))
    ]
    statistics = {
        "read_from_files": sum(entry.rows for entry in known_files(context).values()),
        "documents": sum(
            made.rows for partition in names if (made := folder.documents.manifest(partition))
        ),
        "chunked_documents": sum(entry["documents"] for entry in chunk_statistics),
        "empty_documents": sum(entry["empty"] for entry in chunk_statistics),
        "chunks": sum(
            made.rows for partition in names if (made := folder.chunks.manifest(partition))
        ),
        "embeddings": sum(
            made.rows for partition in names if (made := folder.embeddings.manifest(partition))
        ),
        "rejected_texts": 0,  # chunks that the provider refused
        "rejected_documents": 0,  # of which it refused every chunk
        "table_rows": table.rows(),
        "partitions_behind_their_documents": sum(
            _behind(context, partition) for partition in names
        ),
    }
    ids: set[str] = set()
    doubled = 0
    documents_in_table = 0
    for partition in (
        names
    ):  # a document is in one partition only: what is held in memory is one partition's ids
        ids.clear()
        documents: set[str] = set()
        for batch in table.scan(["chunk_id", "document_id"], partition):
            before = len(ids)
            ids.update(batch["chunk_id"].to_pylist())
            doubled += batch.num_rows - (len(ids) - before)
            documents.update(pc.unique(batch["document_id"]).to_pylist())
        documents_in_table += len(documents)
        refused = without_vector(context, partition)
        statistics["rejected_texts"] += len(refused)
        statistics["rejected_documents"] += len(
            {name.rpartition("#")[0] for name in refused} - documents
        )
    statistics["documents_in_table"] = documents_in_table
    statistics["doubled_chunk_ids"] = doubled
    passed = bool(
        statistics["read_from_files"] == statistics["documents"] == statistics["chunked_documents"]
        and statistics["documents"]
        == documents_in_table + statistics["empty_documents"] + statistics["rejected_documents"]
        and statistics["chunks"]
        == statistics["embeddings"]
        == statistics["table_rows"] + statistics["rejected_texts"]
        and (statistics["table_rows"] or not statistics["rejected_texts"])
        and not doubled
        and not statistics["partitions_behind_their_documents"]
    )
    sentence = (
        f"{statistics['documents']} documents ({statistics['empty_documents']} empty) -> {statistics['chunks']} chunks -> "
        f"{statistics['embeddings']} embeddings -> {statistics['table_rows']} rows of {statistics['documents_in_table']} documents"
        + (
            f"; refused by the provider: {statistics['rejected_texts']}"
            if statistics["rejected_texts"]
            else ""
        )
    )
    return Check(
        "counts_add_up",
        passed,
        sentence if passed else f"Counts do not add up: {sentence}",
        statistics,
    )


def _behind(context: StepContext, partition: str) -> bool:
    """Whether a partition's chunks were made from other documents than it holds now."""
    documents, chunks = (
        context.folder.documents.manifest(partition),
        context.folder.chunks.manifest(partition),
    )
    return documents is None or chunks is None or chunks.inputs != documents.digest


def _vectors_are_sound(
    context: StepContext, space: Space, codec: CodecChain, table: Table
) -> Check:
    statistics = {
        "vectors": 0,
        "not_finite": 0,
        "zero": 0,
        "not_normalized": 0,
        "table_zero_or_not_finite": 0,
    }
    for partition in context.spec.partition_names:
        for batch in context.folder.embeddings.read(partition, [VECTOR]):
            vectors = to_matrix(batch[VECTOR].drop_null())
            norms = np.linalg.norm(vectors, axis=1)
            finite = np.isfinite(norms)
            statistics["vectors"] += len(vectors)
            statistics["not_finite"] += int((~finite).sum())
            statistics["zero"] += int((norms == 0).sum())
            if space.normalized:
                statistics["not_normalized"] += int(
                    (np.abs(norms[finite] - 1) > NORM_TOLERANCE).sum()
                )
    for batch in table.scan([VECTOR]):
        if codec.dtype != "binary":  # of packed bits every pattern is sound, 0 too
            norms = np.linalg.norm(to_matrix(batch[VECTOR]).astype(np.float32), axis=1)
            statistics["table_zero_or_not_finite"] += int(
                (~np.isfinite(norms) | (norms == 0)).sum()
            )
    faults = {name: count for name, count in statistics.items() if count and name != "vectors"}
    sentence = f"{statistics['vectors']} vectors" + (
        ": " + ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in faults.items())
        if faults
        else " are sound"
    )
    return Check("vectors_are_sound", not faults, sentence, statistics)


def _dimensions_match(context: StepContext, space: Space, codec: CodecChain, table: Table) -> Check:
    shards = context.folder.embeddings
    embedded = {
        schema.field(VECTOR).type.list_size
        for partition in context.spec.partition_names
        if (schema := shards.schema(partition)) is not None
    }
    width = table.schema().field(VECTOR).type.list_size
    promised = -(-codec.dimensions // 8) if codec.dtype == "binary" else codec.dimensions
    passed = embedded <= {space.dimensions} and width == promised
    statistics = {
        "model": space.dimensions,
        "embeddings": sorted(embedded),
        "codec": codec.dimensions,
        "table": width,
    }
    return Check(
        "dimensions_match",
        passed,
        f"model {space.dimensions}, table {width} ({codec.dtype})",
        statistics,
    )


def _space_is_one(context: StepContext, space: Space, codec: CodecChain, table: Table) -> Check:
    partitions = {
        made.configuration
        for partition in context.spec.partition_names
        if (made := context.folder.embeddings.manifest(partition))
    }
    stored = (table.schema().metadata or {}).get(SPACE_ID_KEY, b"").decode()
    wanted = stored_space(space, codec).id
    passed = partitions == {space.id} and stored == wanted
    statistics = {"embeddings": sorted(partitions), "table": stored, "queries": wanted}
    return Check("space_is_one", passed, f"table {stored[:12]}, queries {wanted[:12]}", statistics)
