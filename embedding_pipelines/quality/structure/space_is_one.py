"""All partitions and the table are of the space that queries are embedded in."""

from embedding_pipelines.quality.base import Candidate, Check, Outcome
from embedding_pipelines.schemas import SPACE_ID_KEY


class SpaceIsOne(Check):
    def evaluate(self, candidate: Candidate) -> Outcome:
        run, space = candidate.run, candidate.run.model.space
        manifests = map(run.folder.embeddings.manifest, run.spec.partition_names)
        embedded = {entry.configuration for entry in manifests if entry}
        metadata = candidate.table.schema(candidate.version).metadata or {}
        stored = metadata.get(SPACE_ID_KEY, b"").decode()
        queries = space.with_codec(candidate.codec.id).id
        passed = embedded == {space.id} and stored == queries
        return self.outcome(
            passed,
            f"Queries are embedded by {space.title}, in space {queries[:12]}, and the table holds "
            f"vectors of space {stored[:12]}."
            + ("" if passed else " Run the pipeline again: its table is built anew."),
            {"embeddings": sorted(embedded), "table": stored, "queries": queries},
        )
