"""Makes batches of documents from a file's columns; `values.py` converts each of them."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedding_pipelines.sources.base import ReadLog, Rejection, Source, SourceFile
from embedding_pipelines.sources.values import Column, Reasons

BATCH_ROWS = 8192
BATCH_BYTES = 16 * 2**20


def documents(
    source: Source,
    file: SourceFile,
    values: Mapping[str, pa.Array],
    rows: pa.Array,
    raw: Callable[[int], bytes],
    log: ReadLog,
    encoding: str = "UTF-8",
    whole_file: bool = False,
    reasons: Reasons | None = None,
) -> Iterator[pa.RecordBatch]:
    """Batches of documents from n records; those that do not convert go to `log.reject`.

    values: an array of n values of any Arrow type for each of `source.columns`; rows: int64[n];
    raw(i): the bytes of record i; encoding: as a reason names it; whole_file: the file is one
    record, whose id is the file's name; reasons: which records are rejected whatever their values.
    """
    reasons = {} if reasons is None else reasons

    def column(name: str) -> Column:
        absent = log.absent.setdefault(name, Counter())
        return Column(
            name,
            encoding,
            source.missing_words,
            source.nanoseconds == "cut",
            reasons,
            absent,
            log.join,
        )

    names = source.text if source.id is None else (source.id, *source.text)
    strings = {name: column(name).text(values[name]) for name in names}
    if source.id is not None:
        ids = strings[source.id]
        empty = pc.fill_null(pc.equal(ids, ""), True)
        for at in np.flatnonzero(empty.to_numpy(zero_copy_only=False)).tolist():
            reasons.setdefault(at, f"the id column {source.id!r} is empty")
    elif whole_file:
        ids = pa.array([file.name])
    else:
        ids = pc.binary_join_element_wise(file.name, pc.cast(rows, pa.string()), ":")
    metadata = [column(path).convert(values[path], kind) for path, kind in source.metadata.items()]
    text = _join([strings[name] for name in source.text])
    columns = [ids, text, pa.repeat(file.name, len(rows)), rows, *metadata]
    batch = pa.record_batch(columns, schema=source.schema)
    if reasons:
        good = np.ones(len(rows), dtype=bool)
        for at in sorted(reasons):
            good[at] = False
            log.reject(Rejection(file.name, rows[at].as_py(), reasons[at], raw(at)))
        batch = batch.filter(pa.array(good))
    yield from _slices(batch)


def _join(parts: list[pa.Array]) -> pa.Array:
    """Parts of the text with a line break between them, empty ones left out.

    Not by `null_handling="skip"`: in pyarrow 26 it leaves out rows of which all parts are null.
    """
    text, *others = [pc.fill_null(part, "") for part in parts]
    for other in others:
        both = pc.binary_join_element_wise(text, other, "\n")
        text = pc.if_else(pc.equal(other, ""), text, pc.if_else(pc.equal(text, ""), other, both))
    return text


def _slices(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The batch in slices within BATCH_ROWS and BATCH_BYTES; a single row may be larger."""
    rows = batch.num_rows
    if rows <= BATCH_ROWS and (batch.nbytes <= BATCH_BYTES or rows == 1):
        if rows:
            yield batch
        return
    half = BATCH_ROWS if rows > BATCH_ROWS else rows // 2
    yield from _slices(batch.slice(0, half))
    yield from _slices(batch.slice(half))
