"""The indices of LanceDB over vectors and texts: what each kind needs, when to make one again, when
to merge files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from embedding_pipelines.schemas import TEXT, VECTOR
from embedding_pipelines.stores._lance import batches_of, call, quote_text, sparing_memory
from embedding_pipelines.vectors import Distance

if TYPE_CHECKING:
    from lancedb._lancedb import Table as Lance

IndexKind = Literal["sq", "rq", "pq", "hnsw", "none"]
BITS = "IvfFlat"  # the one index of packed bits in lancedb, whatever kind an option names


@dataclass(frozen=True)
class Index:
    """One kind of index over vectors of numbers."""

    lance: str  # lancedb's name for it
    refine: int  # how many times k candidates are compared again by the column's own numbers
    divisor: int  # of the dimensions that it takes


# Measured with lancedb 0.40, cosine, k = 10, 20 probes. 100,000 MiniLM vectors of captions, 384
# float32, recall@10 with refine 1, 2, 3, 5, 10, 20: sq 0.989 and 1 from 2 on (38.6 MB); rq 0.776,
# 0.951, 0.986, 0.997, 0.9995, 0.9995 (6.2 MB); pq 0.752, 0.927, 0.973, 0.992, 1, 1 (5.4 MB, trained
# in 431 s where rq took 4 and sq 22). Fewer dimensions hold fewer bits: 12,000 x 64 in clusters,
# refine 2, 5, 10, 20: rq 0.36, 0.65, 0.84, 0.98; pq 0.54, 0.80, 0.94, 0.997.
INDICES: dict[str, Index] = {
    "sq": Index("IvfSq", 2, 1),
    "rq": Index("IvfRq", 20, 8),
    "pq": Index("IvfPq", 20, 4),
    "hnsw": Index("IvfHnswSq", 5, 1),
}
_IVF: dict[str, Any] = {
    "distance_type": "l2",
    "num_partitions": None,
    "max_iterations": 50,
    "sample_rate": 256,
    "target_partition_size": None,
}
PARAMETERS: dict[str, dict[str, Any]] = {  # as lancedb.index has them, and their defaults
    "IvfFlat": _IVF,
    "IvfSq": _IVF,
    "IvfRq": _IVF | {"num_bits": 1},
    "IvfPq": _IVF | {"num_bits": 8, "num_sub_vectors": None},
    "HnswSq": _IVF | {"m": 20, "ef_construction": 300},
    "FTS": {
        "with_position": False,
        "base_tokenizer": "simple",
        "language": "English",
        "max_token_length": 40,
        "lower_case": True,
        "stem": True,
        "remove_stop_words": True,
        "ascii_folding": True,
        "ngram_min_length": 3,
        "ngram_max_length": 3,
        "prefix_only": False,
        "block_size": 128,
        "custom_stop_words": None,
        "memory_limit": None,
        "num_workers": None,
        "document_granularity": "row",
    },
}
RETRAIN_GROWTH = 2.0  # train the index again when the table has grown by this factor
# Each update adds a segment to the index, and a file that merges with none of another segment.
# Measured on 30,000 rows: a search takes 8.6 ms of processor time with 1 segment, 15 with 11, 24
# with 41; training 1.3 s.
MAX_SEGMENTS = 8
# Compaction writes the whole table again, and each tagged release keeps its own copy: a change of
# 78 rows of 5,000 then costs 12 MB. So it waits until it would make searches faster.
MAX_SMALL_FILES = 8  # of less than 100,000 rows; each update adds one
MAX_UNINDEXED_ROWS = 4_000  # a search compares them all: 5 ms
MAX_DEAD_SHARE = 0.2  # of the rows on disk
# Texts outside their index are read with each search: 18 ms for 1,000 abstracts of 1,500 characters,
# where the index takes 5 ms for 5,000. To index that many takes 0.1 s.
MAX_UNINDEXED_SHARE = 0.05  # of the texts; from there on a new index costs less than it saves
# With deleted rows still in a file: as many updates as make that number of small files.
MAX_UPDATES = 8
ALWAYS = 100 * 365 * 24 * 3600 * 1000  # ms; old versions are the caller's to remove


def update_index(
    table: Lance,
    kind: IndexKind,
    metric: Distance,
    index_rows: int,
    trained_rows: int,
    has_dead_rows: bool,
) -> int:
    """Train, keep or drop the index of a table's vectors; returns on how many rows it was trained.

    A table has an index from `index_rows` rows on. `trained_rows` is how many the last training saw
    (0: never). `has_dead_rows`: rows that were deleted are to leave their files.
    """
    if has_dead_rows:
        _move_a_row(table)
    rows = call(table.count_rows, None)
    indices = [index for index in call(table.list_indices) if index.columns == [VECTOR]]
    segments = sum(index.num_segments or 1 for index in indices)
    lance_kind = None if kind == "none" else INDICES[kind].lance
    if lance_kind is not None and metric == "hamming":
        lance_kind = BITS
    is_other = any(index.index_type != lance_kind for index in indices)
    has_grown = rows > trained_rows * RETRAIN_GROWTH
    # Files merge that one segment covers.
    is_stale = not segments or is_other or segments >= MAX_SEGMENTS or has_grown or has_dead_rows
    if lance_kind is not None and rows >= index_rows and is_stale:
        width = call(table.schema).field(VECTOR).type.list_size
        with sparing_memory():
            call(create_index, table, VECTOR, _config(lance_kind, metric, width))
        return rows
    # Few rows are left, which a search compares exactly; half, so that the index does not come back
    # with the next row.
    if segments and (is_other or rows < index_rows / 2):
        drop_index(table, indices[0].name)
        segments = 0
    return trained_rows if segments else 0


def update_text_index(table: Lance, language: str | None) -> None:
    """Make, keep or drop the full-text index of a table; `language` None: it has none."""
    indices = _text_indices(table)
    if language is None:
        if indices:
            drop_index(table, indices[0].name)
        return
    unindexed = sum(index.num_unindexed_rows or 0 for index in indices)
    details = [index.index_details or {} for index in indices]
    is_stale = any(entry.get("language") != language for entry in details)
    has_grown = unindexed > call(table.count_rows, None) * MAX_UNINDEXED_SHARE
    segments = sum(index.num_segments or 1 for index in indices)
    if not indices or is_stale or has_grown or segments >= MAX_SEGMENTS:
        call(create_index, table, TEXT, text_config(language))


# These two are left out of the compiled module's types.
def statistics(table: Any) -> dict[str, Any]:
    """Of a table's rows and files, as LanceDB counts them."""
    figures: dict[str, Any] = call(table.stats)
    return figures


def drop_index(table: Any, name: str) -> None:
    call(table.drop_index, name)


async def create_index(table: Lance, column: str, config: Any) -> None:
    """Make the index of a column, in place of the one that it has."""
    await table.create_index(column, config, True, None, name=None, train=True)


def _text_indices(table: Lance) -> list[Any]:
    return [index for index in call(table.list_indices) if index.columns == [TEXT]]


def text_config(language: str) -> Any:
    """Words by Unicode's rules (ICU), which know those of Chinese and Japanese, in small letters
    without accents, as their stems. Stop words stay: nDCG@10 on SciFact's training queries is 0.698
    with and 0.694 without them, and "The Who" is found."""
    return parameters("FTS", base_tokenizer="icu", language=language, remove_stop_words=False)


def compact(table: Lance, has_dead_rows: bool) -> bool:
    """If it is due, merge small files and index new rows; whether it was. With `has_dead_rows` it
    is.

    The full-text index goes, to be made anew: merging it would keep the words of deleted rows, and
    files do not merge of which it covers only some.
    """
    if not has_dead_rows and not _is_scattered(table):
        return False
    for index in _text_indices(table):
        drop_index(table, index.name)
    call(table.optimize, cleanup_since_ms=ALWAYS, delete_unverified=False)
    return True


def _move_a_row(table: Lance) -> None:
    """Give a file with deleted rows another one to be merged with: alone, Lance rewrites none for
    less than a tenth of dead rows, and none of a million rows at all."""
    if statistics(table)["fragment_stats"]["num_small_fragments"] > 1:
        return
    query = table.query()
    query.select_columns(["chunk_id"])
    query.limit(1)
    for batch in list(batches_of(query)):
        for chunk_id in batch["chunk_id"].to_pylist():
            call(table.update, {"chunk_id": "chunk_id"}, f"chunk_id = {quote_text(chunk_id)}")


def _config(lance_kind: str, metric: Distance, dimensions: int) -> Any:
    kind = "HnswSq" if lance_kind == "IvfHnswSq" else lance_kind
    if kind == "IvfPq":  # a byte for 8 numbers, else 4
        size = 8 if dimensions % 8 == 0 else 4
        return parameters(kind, distance_type="cosine", num_sub_vectors=dimensions // size)
    return parameters(kind, distance_type=metric)


def parameters(kind: str, **options: Any) -> Any:
    """What the compiled module is told of an index: the name of an object's class, and attributes.
    The module lancedb.index has such classes; its import takes 1.4 s and 87 MB."""
    return type(kind, (), PARAMETERS[kind] | options)()


def _is_scattered(table: Lance) -> bool:
    """Whether small files, dead rows or rows outside the index slow searches down."""
    figures = statistics(table)
    files = figures["fragment_stats"]
    dead = 1 - figures["num_rows"] / max(1, files["num_fragments"] * files["lengths"]["mean"])
    unindexed = max(
        (index.num_unindexed_rows or 0 for index in call(table.list_indices)), default=0
    )
    return (
        files["num_small_fragments"] > MAX_SMALL_FILES
        or unindexed > MAX_UNINDEXED_ROWS
        or dead > MAX_DEAD_SHARE
    )
