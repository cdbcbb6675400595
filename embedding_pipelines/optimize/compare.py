"""sweep: the cheapest compression and index that keep a floor of recall.

First every compression is measured without an index, which shows what cannot reach the floor. What
is left becomes real tables, the smallest ones that there is room for. The cheapest that keeps the
floor must keep it again with queries that had no part in the choice.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.metrics.neighbours import recall
from embedding_pipelines.optimize.candidates import (
    Compression,
    Point,
    candidates,
    choices,
    fitted,
    mark_front,
)
from embedding_pipelines.optimize.trial import (
    DOUBT,
    FIRST_LOOK,
    Asked,
    Corpus,
    Trial,
    Trials,
    by_codes,
    summary,
)
from embedding_pipelines.providers.common.prices import is_trained_for_truncation
from embedding_pipelines.steps.vector_store import vector_columns
from embedding_pipelines.stores._lance_index import INDICES
from embedding_pipelines.stores.base import Store

MOST_TABLES = 12
# `pq` takes the bytes of `rq`, finds less (0.979 of 0.999 on 99,000 captions) and minutes to train
# in place of a second; a graph is `sq` and more.
KINDS = ("none", "rq", "sq")
REFINES = (2, 5)  # times the index's own figure, where that finds too little


@dataclass(frozen=True)
class Setting:
    """A compression in a store, and the bytes that a vector takes at least: its columns, and the
    codes in the index."""

    compression: Compression
    chain: CodecChain
    store: Store
    bytes_per_vector: float


@dataclass(frozen=True)
class Tried:
    """A point, and the table that it was measured in."""

    point: Point
    trial: Trial
    store: Store


@dataclass(frozen=True)
class Swept:
    """What was measured: of real tables, and of codes alone what became none. `store` is that of
    the chosen point."""

    points: list[Point]
    store: Store | None = None


def sweep(
    corpus: Corpus,
    trials: Trials,
    tuning: Asked,
    rest: Asked,
    floor: float,
    most_ms: float,
    only: int | None,
) -> Swept:
    """Find the cheapest point that keeps `floor`, and measure others beside it. None is chosen if
    none is certified by the queries `rest`.

    `most_ms` is how long its median search may take; `only` are the dimensions to try, if not all.
    Raises ConfigError if there are not so many.
    """
    space, made = corpus.space, list[Tried]()
    if only is not None and only > space.dimensions:
        raise ConfigError(
            f"{only} dimensions cannot be made of {space.dimensions}. Ask for {space.dimensions} or less."
        )
    trained = is_trained_for_truncation(space.provider, space.model)
    chains = fitted(
        candidates(space.dimensions, trained, corpus.rows, only), corpus.blocks, space.dimensions
    )
    first = tuning.part(FIRST_LOOK)
    screened = [
        Point(
            name, "none", None, chains[name].bytes_per_vector, *summary(recall(rows, first.exact))
        )
        for name, rows in by_codes(corpus, chains, first).items()
    ]
    left = [point.compression for point in screened if (point.recall_at_10 or 0.0) >= floor]
    found = [
        setting
        for compression in left
        for setting in settings(corpus, compression, chains[compression])
    ]
    found = sorted(found, key=lambda setting: setting.bytes_per_vector)[:MOST_TABLES]
    chosen = None
    for number, setting in enumerate(found):
        corpus.run.progress.update("optimize", number, len(found), "tables")
        if chosen is None:
            made += _measured(trials, setting, f"trial-{number}", tuning, floor, is_open=True)
            smallest = (
                found[number + 1].bytes_per_vector if number + 1 < len(found) else float("inf")
            )
            chosen = _certified(made, rest, floor, most_ms, smallest)
        else:  # only to be compared with it, by fewer queries
            made += _measured(trials, setting, f"trial-{number}", first, floor, is_open=False)
    points = [tried.point for tried in made]
    scanned = [tried.point.compression for tried in made if tried.trial.is_exact]
    points += [point for point in screened if point.compression not in scanned]
    mark_front(points)
    return Swept(points, chosen.store if chosen else None)


def settings(corpus: Corpus, compression: Compression, chain: CodecChain) -> Iterator[Setting]:
    """The ways in which the pipeline's store can keep and index the codes of a chain, as far as
    they differ."""
    seen: set[str] = set()
    for store, is_indexed in _stores(corpus.run.spec.store, corpus.rows):
        try:
            store.check(chain.dtype, chain.dimensions)
        except ConfigError:
            continue
        columns = vector_columns(store, chain)
        widened = (
            chain.dtype == "int8" and columns[0].type.value_type.bit_width > 8
        )  # as float16, which finds more
        if widened or (not is_indexed and str(columns) in seen):
            continue
        seen.add(str(columns))
        size = sum(
            column.type.list_size * column.type.value_type.bit_width / 8 for column in columns
        )
        yield Setting(
            compression, chain, store, size + (_index_bytes(store, chain) if is_indexed else 0)
        )


def _stores(store: Store, rows: int) -> Iterator[tuple[Store, bool]]:
    """The store with each kind of index; where it keeps none for so few rows, as it is and
    without."""
    if "index" not in type(store).model_fields:
        yield store, False
    elif rows < store.index_rows:  # type: ignore[attr-defined]
        yield store, False
        yield store.model_copy(update={"index": "none", "refine": None}), False
    else:
        for kind in KINDS:
            yield store.model_copy(update={"index": kind, "refine": None}), kind != "none"


def _index_bytes(store: Store, chain: CodecChain) -> float:
    """Of a vector, the codes in an index, so that the smaller ones are tried first."""
    is_byte_index = (store.index, chain.metric) == ("sq", "cosine")  # type: ignore[attr-defined]
    return chain.dimensions if is_byte_index else chain.dimensions / 8


def _measured(
    trials: Trials, setting: Setting, name: str, asked: Asked, floor: float, is_open: bool
) -> Iterator[Tried]:
    """A table, searched with as much refining as it needs to keep the floor.

    While the choice `is_open` its bound has to, and the table is kept to be certified; later its
    mean is enough.
    """
    trial = trials.make(setting.store, setting.chain, name)
    kind = getattr(setting.store, "index", "none")
    refines = kind in INDICES and not trial.is_exact and setting.chain.metric == "cosine"
    usual = INDICES[kind].refine if refines else 0
    for refine in [None, *(usual * times for times in REFINES if usual)]:
        store = setting.store.model_copy(update={"refine": refine}) if refine else setting.store
        trial = trials.reopened(trial, store)
        found = trial.searched(asked, floor)
        yield Tried(
            Point(setting.compression, kind, refine, trial.bytes_per_vector, **vars(found)),
            trial,
            store,
        )
        if is_open and found.lower_bound >= floor:
            return
        if not is_open and found.recall_at_10 >= floor:
            break
    trials.drop(trial, setting.store)


def _certified(
    made: list[Tried], rest: Asked, floor: float, most_ms: float, smallest: float
) -> Tried | None:
    """The first of the cheapest points that keeps the floor with other queries too.

    What is not yet measured takes `smallest` bytes at least. The more points are tried, the surer
    each bound has to be: the first gets half of the doubt, each other one half of what is left, so
    that all together are wrong with a probability of DOUBT at most.
    """
    doubt = DOUBT / 2 ** sum(tried.point.certified is not None for tried in made)
    untried = {id(tried.point): tried for tried in made if tried.point.certified is None}
    for point in choices([tried.point for tried in untried.values()], floor, most_ms):
        if point.bytes_per_vector > smallest:
            break
        doubt /= 2
        found = untried[id(point)].trial.searched(rest, doubt=doubt)
        point.held_out_recall, point.held_out_lower_bound = found.recall_at_10, found.lower_bound
        point.chosen = point.certified = found.lower_bound >= floor
        if point.certified:
            return untried[id(point)]
    return None
