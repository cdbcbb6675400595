"""Every document is in the table through its chunks, was empty, or was rejected by the provider;
none is lost or duplicated."""

from embedding_pipelines.quality.base import Candidate, Check, Outcome
from embedding_pipelines.storage.warehouse import Manifest


class CountsAddUp(Check):
    def evaluate(self, candidate: Candidate) -> Outcome:
        folder, names = candidate.run.folder, candidate.run.spec.partition_names
        documents, chunks, embeddings = (
            [shards.manifest(name) for name in names]
            for shards in (folder.documents, folder.chunks, folder.embeddings)
        )
        behind = sum(
            not before or not after or after.inputs != before.digest
            for before, after in zip(documents, chunks, strict=True)
        )
        cut = [entry.statistics for entry in chunks if entry]
        counts = {
            "read_from_files": candidate.source_rows,
            "documents": sum(_rows(documents)),
            "chunked_documents": sum(entry["documents"] for entry in cut),
            "empty_documents": sum(entry["empty"] for entry in cut),
            "chunks": sum(_rows(chunks)),
            "embeddings": sum(_rows(embeddings)),
            "rejected_texts": len(candidate.rejected),
            "rejected_documents": candidate.rejected_documents,
            "table_rows": candidate.table.rows(candidate.version),
            "partitions_behind_their_documents": behind,
            "documents_in_table": candidate.documents,
            "duplicate_chunk_ids": candidate.duplicate_rows,
        }
        rows, rejected = counts["table_rows"], counts["rejected_texts"]
        searchable = counts["documents"] - counts["empty_documents"] - counts["rejected_documents"]
        passed = bool(
            counts["read_from_files"] == counts["documents"] == counts["chunked_documents"]
            and searchable == counts["documents_in_table"]
            and _rows(chunks) == _rows(embeddings)
            and counts["embeddings"] == rows + rejected
            and (rows or not rejected)
            and not counts["duplicate_chunk_ids"]
            and not behind
        )
        sentence = (
            f"{counts['documents']} documents ({counts['empty_documents']} empty) -> "
            f"{counts['chunks']} chunks -> {counts['embeddings']} embeddings -> {rows} rows of "
            f"{counts['documents_in_table']} documents"
            + (f"; rejected by the provider: {rejected}" if rejected else "")
        )
        return self.outcome(
            passed, sentence if passed else f"Counts do not add up: {sentence}", counts
        )


def _rows(manifests: list[Manifest | None]) -> list[int]:
    return [entry.rows if entry else 0 for entry in manifests]
