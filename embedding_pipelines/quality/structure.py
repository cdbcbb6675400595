"""verify: what must hold before a table version may be released. Each check says what it compared.

The checks of this file concern the table itself; what it is worth is judged by `quality.py`.
"""

import numpy as np
import pyarrow.compute as pc

from embedding_pipelines.providers.base import NORM_TOLERANCE
from embedding_pipelines.quality.check import Check
from embedding_pipelines.quality.measure import Candidate
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import SPACE_ID_KEY, VECTOR
from embedding_pipelines.steps.documents import read_files
from embedding_pipelines.steps.embeddings import rejected_chunks
from embedding_pipelines.vectors import to_matrix


def check_structure(candidate: Candidate) -> list[Check]:
    """The outcome of every check of the table itself."""
    return [
        _counts_add_up(candidate),
        _vectors_are_sound(candidate),
        _dimensions_match(candidate),
        _space_is_one(candidate),
    ]


def _counts_add_up(candidate: Candidate) -> Check:
    run, table = candidate.run, candidate.table
    folder, names = run.folder, run.spec.partition_names
    chunk_statistics = [
        made.statistics for partition in names if (made := folder.chunks.manifest(partition))
    ]
    statistics = {
        "read_from_files": sum(entry.rows for entry in read_files(run).values()),
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
        "partitions_behind_their_documents": sum(_behind(run, partition) for partition in names),
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
        refused = rejected_chunks(run, partition)
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


def _behind(run: Run, partition: str) -> bool:
    """Whether a partition's chunks were made from other documents than it holds now."""
    documents, chunks = (
        run.folder.documents.manifest(partition),
        run.folder.chunks.manifest(partition),
    )
    return documents is None or chunks is None or chunks.inputs != documents.digest


def _vectors_are_sound(candidate: Candidate) -> Check:
    run, codec, table = candidate.run, candidate.codec, candidate.table
    space = run.model.space
    statistics = {
        "vectors": 0,
        "not_finite": 0,
        "zero": 0,
        "not_normalized": 0,
        "table_zero_or_not_finite": 0,
    }
    for partition in run.spec.partition_names:
        for batch in run.folder.embeddings.read(partition, [VECTOR]):
            column = batch[VECTOR].drop_null()
            vectors = column.flatten().to_numpy().reshape(len(column), column.type.list_size)
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


def _dimensions_match(candidate: Candidate) -> Check:
    run, codec, table = candidate.run, candidate.codec, candidate.table
    space = run.model.space
    shards = run.folder.embeddings
    embedded = {
        schema.field(VECTOR).type.list_size
        for partition in run.spec.partition_names
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


def _space_is_one(candidate: Candidate) -> Check:
    run, codec, table = candidate.run, candidate.codec, candidate.table
    space = run.model.space
    partitions = {
        made.configuration
        for partition in run.spec.partition_names
        if (made := run.folder.embeddings.manifest(partition))
    }
    stored = (table.schema().metadata or {}).get(SPACE_ID_KEY, b"").decode()
    wanted = space.with_codec(codec.id).id
    passed = partitions == {space.id} and stored == wanted
    statistics = {"embeddings": sorted(partitions), "table": stored, "queries": wanted}
    return Check("space_is_one", passed, f"table {stored[:12]}, queries {wanted[:12]}", statistics)
