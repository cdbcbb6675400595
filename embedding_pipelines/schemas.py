"""The columns of every table: their names and Arrow types.

documents   one row per source record            DOCUMENT_COLUMNS + the pipeline's metadata columns
chunks      one row per piece of text            CHUNK_COLUMNS + metadata
embeddings  one row per chunk, in chunk order    chunk_id + vector fixed_size_list<float32>[d]
table       what searches read                   TABLE_COLUMNS + metadata + vector
rejected    one row per rejected record; of texts that the provider rejected, one row per chunk
"""

import hashlib
from collections.abc import Mapping

import pyarrow as pa

DIGEST_BYTES = 16  # 128 bits: at 10^9 rows the chance of any collision is about 1e-21
# Before it hashes more, hashlib lets other threads of Python run, and then waits for them up to 5 ms.
HELD_BYTES = 2_047
DIGEST = pa.binary(DIGEST_BYTES)

DOCUMENT_COLUMNS: dict[str, pa.DataType] = {
    "document_id": pa.string(),
    "text": pa.string(),
    "source_file": pa.string(),  # relative to the home folder, posix
    "source_row": pa.int64(),  # CSV, JSON Lines, Markdown: line; PDF: page; else record; from 1
}
DOCUMENT_DIGEST = "document_digest"  # over text and metadata, not over file and row

CHUNK_COLUMNS: dict[str, pa.DataType] = {
    "chunk_id": pa.string(),  # f"{document_id}#{start}"
    "document_id": pa.string(),
    "start": pa.int64(),  # characters into the cleaned text, inclusive
    "end": pa.int64(),  # exclusive
    "text": pa.string(),
    "tokens": pa.int32(),  # as the model counts them, special tokens included
    "unknown_tokens": pa.int32(),  # of these, those that the model's vocabulary lacks
    "unseen_tokens": pa.int32(),  # of the document behind it, which no chunk holds (`chunk: null`)
    DOCUMENT_DIGEST: DIGEST,
    "chunk_digest": DIGEST,  # over text, offsets and metadata; decides which rows differ
}

_OF_CHUNKS = ("chunk_id", "document_id", "start", "end", "text", "chunk_digest")
TABLE_COLUMNS: dict[str, pa.DataType] = {name: CHUNK_COLUMNS[name] for name in _OF_CHUNKS}
# For updates, as `chunk_digest`; the rest is for searches.
TABLE_COLUMNS["partition"] = pa.string()
TABLE_COLUMNS["vector_checksum"] = pa.int64()  # CRC-32 of the vector as the model gave it

# Never null, for it is the table's primary key: without one, two writers who merge the same new id
# at once store it twice.
TABLE_KEY = "chunk_id"

TEXT = "text"
# Metadata of sources with images: the digest of the pixels, the file, a hash that is alike.
IMAGE, URI, PERCEPTUAL = "image", "uri", "perceptual"
VECTOR = "vector"
RESCORING_VECTOR = "rescoring_vector"  # a finer code of the same vector

# What a column holds, for a person who looks at it in Dagster; metadata columns describe themselves.
DESCRIPTIONS = {
    "document_id": "The record's id in the source; decides its partition.",
    "text": "The text: of a document as it was read, of a chunk cleaned and cut.",
    "source_file": "The file it comes from, relative to the home folder.",
    "source_row": "Where it stands in the file, from 1: the line in text, the page in PDF, else the record.",
    DOCUMENT_DIGEST: "Digest of text and metadata: what makes the document itself.",
    "chunk_id": "The document's id, `#`, and the chunk's first character.",
    "start": "First character of the chunk in the cleaned text.",
    "end": "The character after its last one.",
    "tokens": "Tokens as the model counts them, special tokens included.",
    "unknown_tokens": "Of these, how many the model's vocabulary lacks.",
    "unseen_tokens": "Tokens of the rest of the document, which was cut off; 0 in most pipelines.",
    "chunk_digest": "Digest of text, offsets and metadata: decides which rows of the table differ.",
    "partition": "The partition of its document.",
    "vector_checksum": "CRC-32 of the vector as the model gave it.",
    VECTOR: "The vector; null if the provider rejected the text.",
    RESCORING_VECTOR: "A finer code of the same vector, by which candidates are ranked again.",
}

REJECTED = pa.schema(
    [
        pa.field("file", pa.string()),
        pa.field("row", pa.int64()),  # as `source_row`
        pa.field("reason", pa.string()),
        pa.field("raw", pa.binary()),  # the record's bytes in the file
    ]
)

REJECTED_TEXTS = pa.schema(
    [(name, pa.string()) for name in ("partition", "chunk_id", "text", "reason")]
)

# LanceDB's own names, in tables and in results.
STORE_COLUMNS = frozenset(
    {"_rowid", "_rowaddr", "_rowoffset", "_distance", "_score", "_relevance_score"}
)
RESERVED = STORE_COLUMNS.union(
    DOCUMENT_COLUMNS, CHUNK_COLUMNS, TABLE_COLUMNS, (VECTOR, RESCORING_VECTOR, "score")
)

# The types of metadata columns, by their names in a pipeline file.
METADATA_TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "list[string]": pa.list_(pa.string()),
}

# Those of a table, which a model may give columns of its own.
TABLE_TYPES = METADATA_TYPES | {"list[float]": pa.list_(pa.float32())}

SPACE_ID_KEY = b"embedding_pipelines.space_id"  # key in the schema metadata of Parquet and Lance
HAS_IMAGES_KEY = b"embedding_pipelines.has_images"  # in that of embeddings whose source has images


def has_images(schema: pa.Schema) -> bool:
    """Whether rows are of a source of images, whatever the pipeline reads now."""
    return {IMAGE, URI, PERCEPTUAL} <= {*schema.names}


def documents_schema(metadata: Mapping[str, str]) -> pa.Schema:
    """What a source yields: DOCUMENT_COLUMNS, then the metadata columns in declared order."""
    return pa.schema([*DOCUMENT_COLUMNS.items(), *_metadata_fields(metadata)])


def stored_documents_schema(metadata: Mapping[str, str]) -> pa.Schema:
    """What the documents step writes: `documents_schema` plus the row's digest."""
    return documents_schema(metadata).append(pa.field(DOCUMENT_DIGEST, DIGEST))


def chunks_schema(metadata: Mapping[str, str]) -> pa.Schema:
    """CHUNK_COLUMNS, then the metadata columns of the document."""
    return pa.schema([*CHUNK_COLUMNS.items(), *_metadata_fields(metadata)])


def embeddings_schema(dimensions: int, space_id: str, has_images: bool = False) -> pa.Schema:
    """`chunk_id` and `vector` float32[dimensions], null for a rejected text, with the space id."""
    metadata = {SPACE_ID_KEY: space_id.encode()} | ({HAS_IMAGES_KEY: b""} if has_images else {})
    return pa.schema(
        [pa.field("chunk_id", pa.string()), pa.field(VECTOR, pa.list_(pa.float32(), dimensions))],
        metadata=metadata,
    )


def table_schema(metadata: Mapping[str, str], vector: pa.DataType, space_id: str) -> pa.Schema:
    """What the vector store holds: TABLE_COLUMNS, metadata and the (compressed) vector."""
    columns = [
        pa.field(name, kind, nullable=name != TABLE_KEY) for name, kind in TABLE_COLUMNS.items()
    ]
    return pa.schema(
        [*columns, *_metadata_fields(metadata), (VECTOR, vector)],
        metadata={SPACE_ID_KEY: space_id.encode()},
    )


def digest(*parts: bytes) -> bytes:
    """128-bit BLAKE2b over length-prefixed parts, so that ("a", "bc") and ("ab", "c") differ."""
    framed = b"".join(
        [piece for part in parts for piece in (len(part).to_bytes(8, "little"), part)]
    )
    hasher = hashlib.blake2b(framed[:HELD_BYTES], digest_size=DIGEST_BYTES)
    for start in range(HELD_BYTES, len(framed), HELD_BYTES):
        hasher.update(framed[start : start + HELD_BYTES])
    return hasher.digest()


def _metadata_fields(metadata: Mapping[str, str]) -> list[tuple[str, pa.DataType]]:
    return [(name, TABLE_TYPES[kind]) for name, kind in metadata.items()]
