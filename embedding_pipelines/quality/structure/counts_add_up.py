"""Every document is in the table through its chunks, was empty, or was rejected by the provider;
none is lost or duplicated."""

from embedding_pipelines.quality.base import Candidate, Check, Outcome
from embedding_pipelines.storage.warehouse import Manifest, PipelineFolder


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
            "misplaced_documents": candidate.misplaced_documents,
        }
        rows, rejected = counts["table_rows"], counts["rejected_texts"]
        sentence = (
            f"{counts['documents']} documents ({counts['empty_documents']} empty) -> "
            f"{counts['chunks']} chunks -> {counts['embeddings']} embeddings -> {rows} rows of "
            f"{counts['documents_in_table']} documents"
            + (f"; rejected by the provider: {rejected}" if rejected else "")
        )
        faults = _faults(counts)
        if faults:
            sentence = f"Counts do not add up: {'; '.join(faults)}. ({sentence}.)"
            sentence += _remedy(folder, counts)
        return self.outcome(not faults, sentence, counts)


def _faults(counts: dict[str, int]) -> list[str]:
    """What is lost or doubled, in words."""
    searchable = counts["documents"] - counts["empty_documents"] - counts["rejected_documents"]
    behind, doubled = counts["partitions_behind_their_documents"], counts["duplicate_chunk_ids"]
    pairs = (
        ("records read from files", "read_from_files", "documents", counts["documents"]),
        ("documents", "documents", "documents cut into chunks", counts["chunked_documents"]),
        ("chunks", "chunks", "embeddings", counts["embeddings"]),
        (
            "embeddings",
            "embeddings",
            "rows and rejected texts",
            counts["table_rows"] + counts["rejected_texts"],
        ),
    )
    faults = [
        f"{counts[name]:,} {left}, but {right_count:,} {right}"
        for left, name, right, right_count in pairs
        if counts[name] != right_count
    ]
    if searchable != counts["documents_in_table"]:
        here = f"{counts['documents_in_table']:,} are there"
        faults.append(f"{searchable:,} documents should be in the table, {here}")
    if behind:
        faults.append(f"{behind} partitions hold chunks of other documents than theirs")
    if doubled:
        faults.append(f"{doubled:,} chunks stand in the table twice")
    if counts["misplaced_documents"]:
        number = counts["misplaced_documents"]
        faults.append(f"{number:,} documents stand in a partition that is not that of their id")
    if counts["rejected_texts"] and not counts["table_rows"]:
        faults.append("the provider rejected every text")
    return faults


def _remedy(folder: PipelineFolder, counts: dict[str, int]) -> str:
    if counts["rejected_texts"] and not counts["table_rows"]:
        name = folder.folder.name
        return (
            f" {folder.rejected_texts} has its reasons; `embedding-pipelines retry {name}` "
            "sends them again."
        )
    return (
        f" A file may be damaged: delete the folders documents, chunks and embeddings in "
        f"{folder.folder} and run again; vectors in the embedding cache are not computed again."
    )


def _rows(manifests: list[Manifest | None]) -> list[int]:
    return [entry.rows if entry else 0 for entry in manifests]
