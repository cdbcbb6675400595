"""Preprocessing: cleans documents, cuts them into chunks and counts both, batch by batch.

`html.py` takes markup away, `clean.py` tidies text, `chunk.py` decides where to cut it. This module orders the
steps and writes the rows of chunks, with their ids and digests.
"""

import datetime
import itertools
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
from embedding_pipelines.preprocessing.html import Html, version, without_markup

MAX_ROWS = 8192  # of a batch of chunks
# Text to clean and encode at once: an encoding takes about 100 bytes a token, four times its text.
_GROUP_BYTES = 1 << 20


@dataclass
class Counts:
    """What `process` has done so far; it adds to this while its batches are read."""

    documents: int = 0
    empty: int = 0  # documents of which the model reads nothing after cleaning; they have no chunk
    truncated: int = 0  # lost their end, because `chunk` is null and the model takes less
    unseen_tokens: int = 0  # of these ends
    chunks: int = 0
    tokens: int = 0  # of all chunks, special and overlapping ones too: what the model has to read
    unknown_tokens: int = 0  # of these, those that the model's vocabulary lacks
    html: int = 0  # documents that lost their markup
    images: int = 0  # of the chunks, those of images, of which the model reads no text


class Preprocessing(BaseModel):
    """The section `preprocessing` of a pipeline file; `chunk: null` keeps one chunk a document."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    html: Html = "auto"
    """Take the markup out of HTML: of texts that are mostly markup, of all (true) or of none."""
    clean: Clean = Clean()
    chunk: Chunk | None = Chunk()

    @property
    def version(self) -> str:
        """All that decides a document's chunks, except the tokenizer and its limit."""
        chunk = self.chunk.version if self.chunk else "chunk/none"
        return f"{version(self.html)} {self.clean.version} {chunk}"

    def cutter(self, tokenizer: Tokenizer, limit: int) -> Cutter:
        """What `process` cuts with. Make one for all partitions: it takes 30 ms.

        `limit` is the most tokens the model takes, special tokens included; `tokenizer` is copied.
        Raises ConfigError if limit and options leave no room for text.
        """
        return Cutter(tokenizer, limit, self.chunk)

    def tidy(self, texts: Sequence[str]) -> tuple[list[str], int]:
        """Texts of documents without markup and cleaned, in order, and how many had markup."""
        plain, of_html = without_markup(texts, self.html)
        return self.clean.texts(plain), of_html

    def process(
        self,
        documents: Iterable[pa.RecordBatch],
        cutter: Cutter,
        counts: Counts,
        images: bool = False,
    ) -> Iterator[pa.RecordBatch]:
        """Chunks of `schemas.chunks_schema`, in the order of their documents.

        `documents` are of `schemas.stored_documents_schema`. A batch has at most MAX_ROWS rows and
        the chunks of about 1 MiB of text, or of one longer document. With `images`, a document with
        a digest in its column `image` is one chunk with all of its text, and no tokens. Raises ConfigError if a single
        character has more tokens than a chunk may hold.
        """
        for group in itertools.chain.from_iterable(map(_groups, documents)):
            given = [text or "" for text in group["text"].to_pylist()]
            texts, of_html = self.tidy(given)
            counts.html += of_html
            pieces = _cut(group, texts, cutter, counts) if images else cutter.cut(texts)
            counts.documents += len(texts)
            counts.empty += sum(not cuts for cuts in pieces)
            rows = [(row, piece) for row, cuts in enumerate(pieces) for piece in cuts]
            for at in range(0, len(rows), MAX_ROWS):
                part = rows[at : at + MAX_ROWS]
                batch = _batch(group, texts, part)
                counts.chunks += batch.num_rows
                counts.tokens += sum(piece.tokens for _, piece in part)
                counts.unknown_tokens += sum(piece.unknown for _, piece in part)
                counts.truncated += sum(piece.unseen > 0 for _, piece in part)
                counts.unseen_tokens += sum(piece.unseen for _, piece in part)
                yield batch


def _cut(
    group: pa.RecordBatch, texts: Sequence[str], cutter: Cutter, counts: Counts
) -> list[list[Piece]]:
    """The pieces of texts, and of each image the whole text."""
    is_image = group["image"].is_valid().to_pylist()
    counts.images += sum(is_image)
    plain = [text for text, image in zip(texts, is_image, strict=True) if not image]
    cuts = iter(cutter.cut(plain))
    return [
        [Piece(0, len(text), 0)] if image else next(cuts)
        for text, image in zip(texts, is_image, strict=True)
    ]


def _groups(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Slices of at most MAX_ROWS rows and `_GROUP_BYTES` of text, or of one longer document."""
    first = size = 0
    for row, length in enumerate(pc.binary_length(batch["text"]).to_pylist()):
        if row > first and (row - first >= MAX_ROWS or size + (length or 0) > _GROUP_BYTES):
            yield batch.slice(first, row - first)
            first, size = row, 0
        size += length or 0
    if first < batch.num_rows:
        yield batch.slice(first)


def _batch(
    group: pa.RecordBatch, texts: Sequence[str], rows: Sequence[tuple[int, Piece]]
) -> pa.RecordBatch:
    """The chunks' rows; `rows` holds the row of the document in `group` and the piece of its text."""
    own = {*schemas.DOCUMENT_COLUMNS, schemas.DOCUMENT_DIGEST}
    metadata = [field for field in group.schema if field.name not in own]
    names = [field.name for field in metadata]
    values = [_canonical(row) for row in group.select(names).to_pylist()]
    ids = group["document_id"].to_pylist()
    columns: dict[str, list[object]] = {name: [] for name in schemas.CHUNK_COLUMNS}
    for row, piece in rows:
        text = texts[row][piece.start : piece.end]
        start, end = b"%d" % piece.start, b"%d" % piece.end
        columns["chunk_id"].append(f"{ids[row]}#{piece.start}")
        columns["start"].append(piece.start)
        columns["end"].append(piece.end)
        columns["text"].append(text)
        columns["tokens"].append(piece.tokens)
        columns["unknown_tokens"].append(piece.unknown)
        columns["unseen_tokens"].append(piece.unseen)
        columns["chunk_digest"].append(schemas.digest(text.encode(), start, end, values[row]))
    of_documents = group.select(["document_id", schemas.DOCUMENT_DIGEST, *names])
    of_rows = of_documents.take(pa.array([row for row, _ in rows], pa.int64()))
    return pa.RecordBatch.from_pydict(
        columns | {name: of_rows[name] for name in of_rows.schema.names},
        schema=pa.schema([*schemas.CHUNK_COLUMNS.items(), *metadata]),
    )


def _canonical(metadata: dict[str, object]) -> bytes:
    """The same text for equal values only; dates and times carry their type."""
    return json.dumps(metadata, sort_keys=True, ensure_ascii=False, default=_tag_date).encode()


def _tag_date(value: object) -> list[str]:
    if isinstance(value, datetime.date):  # and datetime.datetime
        return [type(value).__name__, value.isoformat()]
    raise TypeError(f"metadata of type {type(value).__name__!r} has no canonical form")
