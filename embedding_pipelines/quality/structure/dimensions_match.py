"""Embeddings and table have the dimensions that model and codec promise."""

from embedding_pipelines.compression.base import code_width
from embedding_pipelines.quality.base import Candidate, Check, Outcome
from embedding_pipelines.schemas import VECTOR


class DimensionsMatch(Check):
    def evaluate(self, candidate: Candidate) -> Outcome:
        run, codec = candidate.run, candidate.codec
        model = run.model.space.dimensions
        schemas = map(run.folder.embeddings.schema, run.spec.partition_names)
        embedded = {schema.field(VECTOR).type.list_size for schema in schemas if schema is not None}
        width = candidate.table.schema(candidate.version).field(VECTOR).type.list_size
        passed = embedded <= {model} and width == code_width(codec.dimensions, codec.dtype)
        return self.outcome(
            passed,
            f"The model's vectors have {model} dimensions, the codec's {codec.dimensions}, the "
            f"table's {width} ({codec.dtype})."
            + ("" if passed else " Run the pipeline again: its table is built anew."),
            {
                "model": model,
                "embeddings": sorted(embedded),
                "codec": codec.dimensions,
                "table": width,
            },
        )
