"""dimensions_match: embeddings are as wide as the model says, and the table as the codec says."""

from embedding_pipelines.compression.base import code_width
from embedding_pipelines.quality.base import Check, Outcome
from embedding_pipelines.quality.evidence import Candidate
from embedding_pipelines.schemas import VECTOR


class DimensionsMatch(Check):
    name = "dimensions_match"
    is_structural = True
    description = "Embeddings and table have the dimensions that model and codec promise."

    def evaluate(self, candidate: Candidate) -> Outcome:
        codec, model = candidate.codec, candidate.run.model.space.dimensions
        width = candidate.table.schema(candidate.version).field(VECTOR).type.list_size
        return self.outcome(
            candidate.shard_dimensions <= {model}
            and width == code_width(codec.dimensions, codec.dtype),
            f"model {model}, table {width} ({codec.dtype})",
            {
                "model": model,
                "embeddings": sorted(candidate.shard_dimensions),
                "codec": codec.dimensions,
                "table": width,
            },
        )
