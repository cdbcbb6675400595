"""Vectors as the columns of a table: their codes, and finer ones beside them."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from embedding_pipelines.compression.base import CodecChain, code_width
from embedding_pipelines.providers.base import NORM_TOLERANCE
from embedding_pipelines.schemas import RESCORING_VECTOR, VECTOR, table_schema
from embedding_pipelines.stores.base import NUMBER_TYPES, Store
from embedding_pipelines.vectors import Vectors, to_column, unit


def vector_columns(store: Store, codec: CodecChain) -> list[pa.Field]:
    """The table's columns of vectors: the codes, and their finer copies if the codec keeps some."""
    width, finer = code_width(codec.dimensions, codec.dtype), codec.rescoring_codec
    columns = [pa.field(VECTOR, pa.list_(store.column_type(codec.dtype), width))]
    if finer is not None:
        numbers = pa.list_(NUMBER_TYPES[finer.dtype], finer.dimensions)
        columns.append(pa.field(RESCORING_VECTOR, numbers))
    return columns


def schema_of(
    store: Store, codec: CodecChain, metadata: Mapping[str, str], space_id: str
) -> pa.Schema:
    """The columns of a table whose vectors have these codes."""
    codes, *copies = vector_columns(store, codec)
    schema = table_schema(metadata, codes.type, space_id)
    return pa.schema([*schema, *copies], schema.metadata)


def encoded(store: Store, codec: CodecChain, vectors: Vectors) -> dict[str, pa.FixedSizeListArray]:
    """float32[n, d] as these columns, by name; without compression at unit length, so that a dot
    product in the table is a cosine, too."""
    codes = codec.encode(vectors) if codec.codecs else _at_unit_length(codec.encode(vectors))
    matrices = codes, codec.encode_rescoring(vectors)
    pairs = zip(vector_columns(store, codec), matrices, strict=False)
    return {field.name: to_column(codes, field.type) for field, codes in pairs if codes is not None}


def _at_unit_length(vectors: Vectors) -> Vectors:
    """Bit by bit as they are where the model has normalized them."""
    lengths = np.linalg.norm(vectors, axis=1)
    if (np.abs(lengths - 1) <= NORM_TOLERANCE).all():
        return vectors
    units: Vectors = unit(vectors)
    return units
