"""Finds the cheapest compression and index that keep a floor of recall.

It first measures every compression without an index, which shows what cannot reach the floor. The
smallest of the others become real tables. The cheapest one that keeps the floor must keep it again
with queries that had no part in the choice.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from embedding_pipelines.codes import vector_columns
from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.metrics.neighbours import recall
from embedding_pipelines.optimize.candidates import (
    Compression,
    Point,
    fit_all,
    list_compressions,
    mark_front,
    rank_eligible,
)
from embedding_pipelines.optimize.tables import (
    ALPHA,
    FIRST_QUERIES,
    CandidateTable,
    CandidateTables,
    Corpus,
    QuerySet,
    search_codes,
    summarize,
)
from embedding_pipelines.providers.common.prices import is_trained_for_truncation
from embedding_pipelines.stores.base import IndexChoice, Store

MOST_TABLES = 12


@dataclass(frozen=True)
class Candidate:
    """A compression and an index, and the bytes of a vector's columns and of its code there."""

    compression: Compression
    chain: CodecChain
    index: IndexChoice
    bytes_per_vector: float


def search_candidates(
    corpus: Corpus,
    tables: CandidateTables,
    selection: QuerySet,
    held_out: QuerySet,
    floor: float,
    most_ms: float,
    only: int | None,
) -> tuple[list[Point], Store]:
    """Choose the cheapest point that keeps `floor`, if the queries `held_out` certify one; all
    points, and the store of the chosen one, by default the pipeline's own.

    Points of tables have times, others are of codes alone. `most_ms` is the most that its median
    search may take; `only` restricts the dimensions. Raises ConfigError if there are fewer.
    """
    space = corpus.space
    if only is not None and only > space.dimensions:
        raise ConfigError(
            f"The vectors have {space.dimensions} dimensions, not {only}. Ask for "
            f"{space.dimensions} or less."
        )
    trained = is_trained_for_truncation(space.provider, space.model)
    compressions = list_compressions(space.dimensions, trained, corpus.rows, only)
    chains = fit_all(compressions, corpus.blocks, space.dimensions)
    first = selection.part(FIRST_QUERIES)
    screened, candidates = list[Point](), list[Candidate]()
    for compression, rows in search_codes(corpus, chains, first).items():
        chain, figures = chains[compression], summarize(recall(rows, first.exact))
        screened.append(Point(compression, "none", None, chain.bytes_per_vector, *figures))
        if figures[0] >= floor:
            candidates += list_candidates(corpus, compression, chain)
    candidates = sorted(candidates, key=lambda candidate: candidate.bytes_per_vector)[:MOST_TABLES]
    measured: dict[Point, CandidateTable] = {}
    best, sizes = None, [*(candidate.bytes_per_vector for candidate in candidates), math.inf]
    for number, candidate in enumerate(candidates):
        corpus.run.progress.update("optimize", number, len(candidates), "tables")
        name = f"candidate-{number}"
        if best is None:
            measured |= _measure(tables, candidate, name, selection, floor, is_open=True)
            best = _certify(measured, held_out, floor, most_ms, sizes[number + 1])
        else:  # for comparison only, with fewer queries
            measured |= _measure(tables, candidate, name, first, floor, is_open=False)
    exact = [point.compression for point, table in measured.items() if table.is_exact]
    points = [*measured, *(point for point in screened if point.compression not in exact)]
    mark_front(points)
    return points, measured[best].store if best else corpus.run.spec.store


def list_candidates(
    corpus: Corpus, compression: Compression, chain: CodecChain
) -> Iterator[Candidate]:
    """The different ways in which the pipeline's store can keep and index the codes of a chain."""
    layouts: set[str] = set()
    for index in corpus.run.spec.store.index_choices(corpus.rows):
        try:
            index.store.check(chain.dtype, chain.dimensions)
        except ConfigError:
            continue
        columns = vector_columns(index.store, chain)
        bits = [column.type.list_size * column.type.value_type.bit_width for column in columns]
        # The same size as float16, which has a higher recall.
        is_wide = chain.dtype == "int8" and columns[0].type.value_type.bit_width > 8
        if is_wide or (not index.bits and str(columns) in layouts):
            continue
        layouts.add(str(columns))
        index_bits = min(index.bits, 1) if chain.metric == "hamming" else index.bits
        size = (sum(bits) + index_bits * chain.dimensions) / 8
        yield Candidate(compression, chain, index, size)


def _measure(
    tables: CandidateTables,
    candidate: Candidate,
    name: str,
    query_set: QuerySet,
    floor: float,
    is_open: bool,
) -> Iterator[tuple[Point, CandidateTable]]:
    """Build a table and search it with as much refining as it needs to keep the floor: its lower
    bound while the choice `is_open`, and the table stays for certification; later its mean."""
    index, chain = candidate.index, candidate.chain
    table = tables.build(index.store, chain, name)
    refines = not table.is_exact and chain.metric == "cosine"
    finer = index.finer.items() if refines else ()
    for refine, store in [(None, index.store), *finer]:
        table = tables.reopen(table, store)
        figures = table.measure(query_set, floor)
        size = table.bytes_per_vector
        yield Point(candidate.compression, index.name, refine, size, **vars(figures)), table
        if is_open and figures.lower_bound >= floor:
            return
        if not is_open and figures.recall_at_10 >= floor:
            break
    tables.drop(table)


def _certify(
    measured: Mapping[Point, CandidateTable],
    held_out: QuerySet,
    floor: float,
    most_ms: float,
    smallest: float,
) -> Point | None:
    """The first of the cheapest points that keeps the floor with the held-out queries, too.

    Candidates without a table take `smallest` bytes at least. The first point gets half of ALPHA,
    each later one half of the rest, so that the probability of any wrong bound is ALPHA at most.
    """
    points = [point for point in measured if point.certified is None]
    alpha = ALPHA / 2 ** (len(measured) - len(points))
    for point in rank_eligible(points, floor, most_ms):
        if point.bytes_per_vector > smallest:
            break
        alpha /= 2
        figures = measured[point].measure(held_out, alpha=alpha)
        point.held_out_recall = figures.recall_at_10
        point.held_out_lower_bound = figures.lower_bound
        point.chosen = point.certified = figures.lower_bound >= floor
        if point.certified:
            return point
    return None
