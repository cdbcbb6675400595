"""Preprocessing as a whole: documents go in, chunks come out, batch by batch.

Holds the order of the two steps, the chunk's row with its identity and digest, and the counts for
the run's report. What cleaning does is in `clean.py`, where a text is cut in `chunk.py`; files are
others' business.
"""

import datetime
import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer

from embedding_pipelines import schemas
from embedding_pipelines.preprocessing.chunk import Chunk, Cutter, Piece
from embedding_pipelines.preprocessing.clean import Clean

MAX_ROWS = 8192  # of one batch that comes out
# Text that is cleaned and encoded at once. An encoding takes about 100 bytes a token, four times
# its text.
_GROUP_BYTES = 1 << 20


@dataclass
class Counts:
    """What the run reports; `process` adds to it as its batches are drawn."""

    documents: int = 0
    empty: int = 0
    """Documents without text once cleaned; they have no chunk."""
    truncated: int = 0
    """Documents whose end was cut off, because they are longer than the model takes and `chunk` is
    null."""
    chunks: int = 0
    tokens: int = 0
    """Of all chunks, special tokens and shared ones included: what the model will have to read."""


class Preprocessing(BaseModel):
    """What a pipeline file says under `preprocessing`; `chunk: null` keeps one chunk per
    document."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    clean: Clean = Clean()
    chunk: Chunk | None = Chunk()

    @property
    def version(self) -> str:
        """All that decides what chunks a document gives, but for the tokenizer and its limit."""
        return f"{self.clean.version} {self.chunk.version if self.chunk else 'chunk/none'}"

    def process(
        self, documents: Iterable[pa.RecordBatch], tokenizer: Tokenizer, limit: int, counts: Counts
    ) -> Iterator[pa.RecordBatch]:
        """Chunks of `schemas.chunks_schema` for documents of `schemas.stored_documents_schema`, in
        order.

        `limit` is the most tokens the model takes, special tokens included; `tokenizer` is left as
        it is. A batch has at most MAX_ROWS rows and the chunks of about 1 MiB of text, or of one
        longer document. ConfigError at once if limit and options leave no room for text, and on the
        way if a single character has more tokens than a chunk may hold.
        """
        cutter = _cutter(tokenizer, limit, self.chunk)
        return (
            chunks
            for batch in documents
            for group in _groups(batch)
            for chunks in self._chunks(group, cutter, counts)
        )

    def _chunks(
        self, group: pa.RecordBatch, cutter: Cutter, counts: Counts
    ) -> Iterator[pa.RecordBatch]:
        texts = self.clean.texts([text or "" for text in group["text"].to_pylist()])
        pieces = cutter.cut(texts)
        counts.documents += len(texts)
        counts.empty += sum(not cuts for cuts in pieces)
        rows = [(row, piece) for row, cuts in enumerate(pieces) for piece in cuts]
        for at in range(0, len(rows), MAX_ROWS):
            batch = _batch(group, texts, rows[at : at + MAX_ROWS], whole=self.chunk is None)
            counts.chunks += batch.num_rows
            counts.tokens += sum(piece.tokens for _, piece in rows[at : at + MAX_ROWS])
            counts.truncated += batch["truncated"].true_count
            yield batch


@functools.lru_cache(maxsize=4)
def _cutter(tokenizer: Tokenizer, limit: int, chunk: Chunk | None) -> Cutter:
    """One for all partitions: it copies the tokenizer, which takes 30 ms."""
    return Cutter(tokenizer, limit, chunk)


def _groups(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Slices of at most MAX_ROWS rows and `_GROUP_BYTES` of text, or of one document that has
    more."""
    first = size = 0
    for row, length in enumerate(pc.binary_length(batch["text"]).to_pylist()):
        if row > first and (row - first >= MAX_ROWS or size + (length or 0) > _GROUP_BYTES):
            yield batch.slice(first, row - first)
            first, size = row, 0
        size += length or 0
    if first < batch.num_rows:
        yield batch.slice(first)


def _batch(
    group: pa.RecordBatch, texts: Sequence[str], rows: Sequence[tuple[int, Piece]], whole: bool
) -> pa.RecordBatch:
    """The chunks' rows; `rows` holds the row of the document in `group` and the piece of its text.

    `whole`: a document has one chunk, so its text is truncated if that ends early.
    """
    stored = {*schemas.DOCUMENT_COLUMNS, schemas.DOCUMENT_DIGEST}
    metadata = [field for field in group.schema if field.name not in stored]
    values = [
        _canonical(row) for row in group.select([field.name for field in metadata]).to_pylist()
    ]
    ids = group["document_id"].to_pylist()
    source = pa.array([row for row, _ in rows], pa.int64())
    cut = [texts[row][piece.start : piece.end] for row, piece in rows]
    columns: dict[str, pa.Array] = {
        "chunk_id": pa.array([f"{ids[row]}#{piece.start}" for row, piece in rows], pa.string()),
        "document_id": group["document_id"].take(source),
        "start": pa.array([piece.start for _, piece in rows], pa.int64()),
        "end": pa.array([piece.end for _, piece in rows], pa.int64()),
        "text": pa.array(cut, pa.string()),
        "tokens": pa.array([piece.tokens for _, piece in rows], pa.int32()),
        "truncated": pa.array(
            [whole and piece.end < len(texts[row].rstrip()) for row, piece in rows], pa.bool_()
        ),
        schemas.DOCUMENT_DIGEST: group[schemas.DOCUMENT_DIGEST].take(source),
        "chunk_digest": pa.array(
            [
                schemas.digest(text.encode(), b"%d" % piece.start, b"%d" % piece.end, values[row])
                for text, (row, piece) in zip(cut, rows, strict=True)
            ],
            schemas.DIGEST,
        ),
    }
    schema = pa.schema([*schemas.CHUNK_COLUMNS.items(), *metadata])
    carried = [group[field.name].take(source) for field in metadata]
    return pa.RecordBatch.from_arrays(
        [*(columns[name] for name in schemas.CHUNK_COLUMNS), *carried], schema=schema
    )


def _canonical(metadata: dict[str, object]) -> bytes:
    """One text for equal values, another for unequal ones; dates and times of day carry their
    type."""
    return json.dumps(metadata, sort_keys=True, ensure_ascii=False, default=_tagged).encode()


def _tagged(value: object) -> list[str]:
    if isinstance(value, datetime.date):  # and datetime.datetime
        return [type(value).__name__, value.isoformat()]
    raise TypeError(f"metadata of type {type(value).__name__!r} has no canonical form")
