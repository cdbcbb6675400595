"""sweep: the cheapest compression and index that keep a floor of recall.

First every compression is measured without an index, which shows what cannot reach the floor. What is left becomes
real tables, the smallest first, until none that is left can be cheaper than one that keeps the floor. That one must
keep it again with queries that had no part in the choice.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.compression.tuning import Compression, Point, candidates, choices, fitted, mark_front
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.providers._models import is_trained_for_truncation
from embedding_pipelines.steps.trial import FIRST_LOOK, Asked, Corpus, Trials, held_out, searched, without_index
from embedding_pipelines.steps.vector_store import vector_columns
from embedding_pipelines.stores._lance_index import INDICES
from embedding_pipelines.stores.base import Store

MOST_TABLES = 12
KINDS = ("none", "rq", "pq", "sq")  # a graph takes more bytes than `sq`, and is made of it
REFINES = (2, 5)  # times the index's own figure, where that finds too little
DOUBT = 0.05  # that a point is certified wrongly; each one that is tried gets half of what is left of it


@dataclass(frozen=True)
class Setting:
    """A compression in a store, and the bytes that a vector takes at least: its columns, and the codes in the index."""

    compression: Compression
    chain: CodecChain
    store: Store
    bytes_per_vector: float


@dataclass(frozen=True)
class Trial:
    """A point, and the table that it was measured in."""

    point: Point
    setting: Setting
    store: Store
    table: str


@dataclass
class Swept:
    """What a sweep has measured: real tables, and the codes alone."""

    trials: list[Trial] = field(default_factory=list)
    screened: list[Point] = field(default_factory=list)
    chosen: Trial | None = None

    @property
    def points(self) -> list[Point]:
        return [trial.point for trial in self.trials]


def sweep(
    corpus: Corpus, trials: Trials, tuning: Asked, rest: Asked, floor: float, most_ms: float, only: int | None
) -> Swept:
    """Measure until the cheapest point that keeps `floor` is found and certified by the queries `rest`, or none is left.

    `most_ms` is how long its median search may take; `only` are the dimensions to try, if not all. Raises ConfigError
    if there are not so many.
    """
    space, made = corpus.space, Swept()
    if only is not None and only > space.dimensions:
        raise ConfigError(f"{only} dimensions cannot be made of {space.dimensions}. Ask for {space.dimensions} or less.")
    trained = is_trained_for_truncation(space.provider, space.model)
    chains = fitted(candidates(space.dimensions, trained, corpus.rows, only), corpus.blocks, space.dimensions)
    made.screened = without_index(corpus, chains, tuning.part(0, FIRST_LOOK))
    left = [point.compression for point in made.screened if point.recall_at_10 >= floor]
    found = [setting for compression in left for setting in settings(corpus, compression, chains[compression])]
    found = sorted(found, key=lambda setting: setting.bytes_per_vector)[:MOST_TABLES]
    for number, setting in enumerate(found):
        corpus.context.progress.update("optimize", number, len(found), "tables")
        made.trials += _measured(trials, setting, f"trial-{number}", tuning, floor)
        smallest = found[number + 1].bytes_per_vector if number + 1 < len(found) else float("inf")
        made.chosen = _certified(trials, made.trials, rest, floor, most_ms, smallest)
        if made.chosen is not None:
            break
    mark_front(made.points)
    return made


def settings(corpus: Corpus, compression: Compression, chain: CodecChain) -> Iterator[Setting]:
    """The ways in which the pipeline's store can keep and index the codes of a chain, as far as they differ."""
    seen: set[str] = set()
    for store, is_indexed in _stores(corpus.context.spec.store, corpus.rows):
        try:
            store.check(chain.dtype, chain.dimensions)
        except ConfigError:
            continue
        columns = vector_columns(store, chain)
        widened = chain.dtype == "int8" and columns[0].type.value_type.bit_width > 8  # as float16, which finds more
        if widened or (not is_indexed and str(columns) in seen):
            continue
        seen.add(str(columns))
        size = sum(column.type.list_size * column.type.value_type.bit_width / 8 for column in columns)
        yield Setting(compression, chain, store, size + (_index_bytes(store, chain) if is_indexed else 0))


def _stores(store: Store, rows: int) -> Iterator[tuple[Store, bool]]:
    """The store with each kind of index; where it keeps none for so few rows, as it is and without."""
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
    return chain.dimensions if (store.index, chain.metric) == ("sq", "cosine") else chain.dimensions / 8  # type: ignore[attr-defined]


def _measured(trials: Trials, setting: Setting, name: str, asked: Asked, floor: float) -> Iterator[Trial]:
    """A table, searched with as much refining as it needs to keep the floor."""
    table, size = trials.table(setting.store, setting.chain, name)
    kind = getattr(setting.store, "index", "none")
    usual = INDICES[kind].refine if kind in INDICES and setting.chain.metric == "cosine" else None
    for refine in [None, *(usual * times for times in REFINES if usual)]:
        store = setting.store.model_copy(update={"refine": refine}) if refine else setting.store
        table = trials.reopened(store, name)
        point = searched(table, setting.chain, asked, Point(setting.compression, kind, refine, round(size, 1)), floor)
        yield Trial(point, setting, store, name)
        if point.lower_bound >= floor:
            return
    trials.drop(setting.store, name)


def _certified(
    trials: Trials, made: list[Trial], rest: Asked, floor: float, most_ms: float, smallest: float
) -> Trial | None:
    """The first of the cheapest points that keeps the floor with other queries too; what is not yet measured takes
    `smallest` bytes at least."""
    tried = sum(trial.point.certified is not None for trial in made)
    open_ones = {id(trial.point): trial for trial in made if trial.point.certified is None}
    for point in choices([trial.point for trial in open_ones.values()], floor, most_ms):
        if point.bytes_per_vector > smallest:
            return None
        tried += 1
        trial = open_ones[id(point)]
        table = trials.reopened(trial.store, trial.table)
        point.held_out_recall, point.held_out_lower_bound = held_out(
            table, trial.setting.chain, rest, 1 - DOUBT / 2**tried
        )
        point.chosen = point.certified = point.held_out_lower_bound >= floor
        if point.certified:
            return trial
    return None
