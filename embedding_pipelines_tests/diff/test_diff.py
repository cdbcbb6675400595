"""The changes between two releases: documents, options, metrics, and the results of searches."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embedding_pipelines.diff.diff import Diff, diff
from embedding_pipelines.diff.documents import (
    MAX_IDS,
    SAMPLE_DOCUMENTS,
    DocumentChanges,
    IdList,
    ReleaseTable,
    compare_documents,
    open_release,
)
from embedding_pipelines.diff.queries import QueryPair, compare_results
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.errors import ReleaseError
from embedding_pipelines.files import read_json, write_json
from embedding_pipelines.providers.base import InputType, Response
from embedding_pipelines.providers.hashing import Hashing, HashingModel
from embedding_pipelines.releases import live_release, read_releases, rollback
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.storage.warehouse import PipelineFolder, Warehouse
from embedding_pipelines_tests.chain import run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.conftest import PLAIN, UNMEASURED

# Without checks: some of these releases are worse than the previous one, which does not matter here.
PIPELINE = PLAIN + UNMEASURED

COLOURS = ("red", "green", "blue", "amber", "black")
THINGS = ("fox", "tea", "whale", "door", "stone", "boat", "lamp", "road")


def rows(n: int = 40) -> list[tuple[str, str, str]]:
    """Rows whose titles are all different and share words."""
    return [
        (f"id-{i}", f"{COLOURS[i % 5]} {THINGS[i % 8]} in the house", f"c{i % 3}") for i in range(n)
    ]


def release(home: Path, content: Sequence[Sequence[object]], pipeline: str = PIPELINE) -> None:
    write_pipeline(home, "p", pipeline)
    write_csv(home, "a.csv", content)
    run_steps(home, "p")


def compare(home: Path, before: int | None = None, after: int | None = None) -> Diff:
    return diff(Warehouse(home), "p", before, after)


def write_queries(home: Path, *texts: str, source: str = "") -> None:
    """Leave queries as a measurement leaves them."""
    queries = [
        {"id": f"q{place}", "text": text, "from": source} for place, text in enumerate(texts)
    ]
    write_json(folder_of(home).queries, {"queries": queries})


# --- documents


def test_documents_that_are_new_gone_and_changed_are_told_apart(home: Path) -> None:
    release(home, rows(40))
    release(home, [*rows(38)[1:], ("id-38", "another text", "c0"), ("id-99", "red fox", "c0")])
    changes = compare(home).documents
    assert (changes.before, changes.after) == (40, 39)
    assert (changes.new, changes.gone, changes.changed) == (
        IdList(1, ["id-99"]),
        IdList(2, ["id-0", "id-39"]),
        IdList(1, ["id-38"]),
    )
    assert changes.moved == IdList()
    assert changes.compared_chunks == 37
    assert changes.mean_cosine == pytest.approx(1, abs=1e-6)


def test_the_other_way_round_new_and_gone_change_places(home: Path) -> None:
    release(home, rows(40))
    release(home, rows(39))
    changes = compare(home, 2, 1)
    assert (changes.before.release, changes.after.release) == (2, 1)
    assert (changes.documents.new.ids, changes.documents.gone.ids) == (["id-39"], [])


def test_a_table_that_was_empty_can_be_compared(home: Path) -> None:
    release(home, [])
    release(home, rows(3))
    changes = compare(home).documents
    assert (changes.before, changes.after, changes.new.count, changes.mean_cosine) == (
        0,
        3,
        3,
        None,
    )


def test_texts_that_are_only_cut_otherwise_are_not_changed(home: Path) -> None:
    long = ("long", " ".join(f"word{n}" for n in range(60)), "c")
    release(home, [*rows(9), long])
    release(
        home, [*rows(9), long], PIPELINE + "preprocessing: {chunk: {max_tokens: 10, overlap: 4}}\n"
    )
    changes = compare(home)
    assert changes.after.rows > changes.before.rows
    assert changes.documents.changed == IdList()
    assert changes.documents.compared_chunks == 9
    assert [(change.option, change.after) for change in changes.options] == [
        ("preprocessing.chunk.max_tokens", 10),
        ("preprocessing.chunk.overlap", 4),
    ]


def test_a_vector_that_points_elsewhere_is_moved_whatever_its_text(home: Path) -> None:
    release(home, rows(40))
    before, after = live(home), with_vector(home, [1.0] + [0.0] * 63)
    changes = compare_documents(before, after)
    assert changes.moved == IdList(1, ["id-3"])
    assert changes.mean_cosine is not None
    assert changes.mean_cosine < 0.999


def test_vectors_of_zeros_have_not_moved_but_one_that_became_zero_has(home: Path) -> None:
    release(home, rows(40))
    before, zeros = live(home), with_vector(home, [0.0] * 64)
    assert compare_documents(before, zeros).moved == IdList(1, ["id-3"])
    assert compare_documents(zeros, zeros).moved == IdList()


def folder_of(home: Path) -> PipelineFolder:
    return Warehouse(home).pipeline("p")


def live(home: Path) -> ReleaseTable:
    return open_release(Warehouse(home), live_release(folder_of(home)))


def table_rows(side: ReleaseTable) -> list[dict[str, Any]]:
    names = side.table.schema().names
    return [row for batch in side.table.scan(names) for row in batch.to_pylist()]


def with_vector(home: Path, vector: list[float]) -> ReleaseTable:
    """The live release, of a table in which somebody replaced a vector."""
    here = live(home)
    schema = here.table.schema()
    (row,) = [
        row
        for batch in here.table.scan(schema.names)
        for row in batch.to_pylist()
        if row["chunk_id"] == "id-3#0"
    ]
    changed = pa.RecordBatch.from_pylist([row | {VECTOR: vector}], schema=schema)
    here.table.apply(schema, ["id-3#0"], [changed])
    changed_release = here.release.model_copy(update={"version": here.table.version})
    return replace(here, release=changed_release)


@pytest.mark.parametrize(
    ("compression", "moved"), [("float16", 0), ("int8", 0), ("{kind: truncate, dimensions: 8}", 40)]
)
def test_what_a_compression_does_to_vectors_counts_as_a_move(
    home: Path, compression: str, moved: int
) -> None:
    release(home, rows(40))
    release(home, rows(40), PIPELINE + f"compression: [{compression}]\n")
    changes = compare(home)
    assert changes.documents.moved is not None
    assert (changes.documents.moved.count, changes.documents.compared_chunks) == (moved, 40)
    assert changes.before.space == changes.after.space
    assert changes.before.codec != changes.after.codec
    assert [change.option for change in changes.options] == ["compression"]
    assert changes.options[0].before == []


def test_all_documents_are_counted_and_the_first_by_name_are_listed() -> None:
    changes = IdList()
    for start in (3_000, 0):
        changes.add([f"{number:04}" for number in range(start, start + 2 * MAX_IDS)])
    assert changes.count == 4 * MAX_IDS
    assert changes.ids == [f"{number:04}" for number in range(MAX_IDS)]


def test_a_refitted_codec_does_not_move_documents_that_stay_where_they_are(home: Path) -> None:
    pipeline = PIPELINE + "compression: [{kind: pca, dimensions: 4}, int8]\n"
    release(home, rows(40)[:10], pipeline)
    release(home, rows(40), pipeline)  # three times what it was fitted to
    changes = compare(home)
    assert changes.before.codec != changes.after.codec
    assert changes.documents.moved is None
    assert changes.neighbours is not None
    assert changes.neighbours.count == 10


def test_bits_that_turn_by_rounding_are_no_move(home: Path) -> None:
    pipeline = PIPELINE + "compression: [{kind: binary, rescore: none}]\n"
    release(home, rows(40), pipeline)
    before = live(home)
    (code,) = [row[VECTOR] for row in table_rows(before) if row["chunk_id"] == "id-3#0"]
    for turned, moved in ((1, 0), (64, 1)):
        changed = [byte ^ 255 for byte in code] if turned == 64 else [code[0] ^ 1, *code[1:]]
        changes = compare_documents(before, with_vector(home, changed))
        assert changes.moved is not None
        assert changes.moved.count == moved


# --- metadata


def test_other_metadata_is_told_by_document_and_column(home: Path) -> None:
    source = PIPELINE.replace("metadata: [cat]", "metadata: [cat, colour, size]")

    def written(*changed: tuple[int, str, str]) -> list[tuple[str, ...]]:
        values = [
            [f"id-{i}", f"{COLOURS[i % 5]} {THINGS[i % 8]} {i}", "c", "", "1"] for i in range(40)
        ]
        for row, column, value in changed:
            values[row][("id", "title", "cat", "colour", "size").index(column)] = value
        return [tuple(row) for row in values]

    def write(rows: list[tuple[str, ...]], pipeline: str = source) -> None:
        write_pipeline(home, "p", pipeline)
        write_csv(home, "a.csv", rows, header="id,title,cat,colour,size")
        run_steps(home, "p")

    write(written())
    write(
        written((3, "cat", "d"), (3, "colour", "red"), (7, "cat", "e"), (9, "title", "new words"))
    )
    changes = compare(home).documents
    assert (changes.metadata, changes.changed) == (IdList(2, ["id-3", "id-7"]), IdList(1, ["id-9"]))
    assert changes.metadata_columns == {"cat": 2, "colour": 1}
    values = [
        (entry.document_id, entry.column, entry.before, entry.after)
        for entry in changes.metadata_examples
    ]
    assert values[0] == ("id-3", "cat", "c", "d")
    assert values[1][:2] == ("id-3", "colour")
    assert values[1][3] == "red"
    assert values[2] == ("id-7", "cat", "c", "e")
    assert changes.moved == IdList()
    # A column that only one of them has is a change of the options.
    write(written(), source.replace(", size]", "]"))
    changes = compare(home).documents
    assert changes.metadata == IdList(2, ["id-3", "id-7"])


# --- two spaces


def test_across_models_the_neighbours_of_a_sample_are_compared(home: Path) -> None:
    release(home, rows(40))
    release(home, rows(39), PIPELINE.replace("hashing}", "hashing, dimensions: 16}"))
    changes = compare(home)
    assert changes.documents.moved is None
    assert changes.before.space != changes.after.space
    neighbours = changes.neighbours
    assert neighbours is not None
    assert neighbours.count == 39
    assert neighbours.mean_overlap is not None
    assert 0.3 < neighbours.mean_overlap < 1
    assert (neighbours.embedded_before, neighbours.embedded_after) == (
        0,
        0,
    )  # the cache knows all chunks
    overlaps = [change.overlap for change in neighbours.changed]
    assert overlaps == sorted(overlaps)
    for change in neighbours.changed:
        assert change.id not in [*change.added, *change.removed]
        assert len(change.added) == len(change.removed) == round(10 * (1 - change.overlap))


def test_two_spaces_of_the_same_geometry_have_the_same_neighbours(home: Path) -> None:
    distinct = [
        (f"id-{n}", f"{COLOURS[n % 5]} {THINGS[n % 8]} word{n} other{n}", "c") for n in range(40)
    ]
    release(home, distinct)
    release(home, distinct, PIPELINE.replace("hashing}", "hashing, max_tokens: 128}"))
    neighbours = compare(home).neighbours
    assert neighbours is not None
    assert (neighbours.count, neighbours.mean_overlap, neighbours.changed) == (40, 1, [])


def test_the_sample_is_the_same_whichever_way_the_releases_are_compared(home: Path) -> None:
    release(home, rows(2 * SAMPLE_DOCUMENTS))
    release(
        home,
        rows(2 * SAMPLE_DOCUMENTS - 10),
        PIPELINE.replace("hashing}", "hashing, dimensions: 16}"),
    )
    before, after = (
        open_release(Warehouse(home), release)
        for release in read_releases(folder_of(home)).releases
    )
    forth, back = compare_documents(before, after).sample, compare_documents(after, before).sample
    assert len({entry.document_id for entry in forth}) == SAMPLE_DOCUMENTS
    assert [entry.document_id for entry in forth] == [entry.document_id for entry in back]


# --- queries


def test_queries_whose_first_ten_changed_are_told_with_what_came_and_went(home: Path) -> None:
    release(home, rows(8))
    release(home, [*rows(7), ("id-99", "purple snow", "c0")])
    write_queries(home, "purple snow", "  ")
    queries = compare(home).queries
    assert queries is not None
    assert (queries.count, queries.embedded_before, queries.embedded_after) == (
        1,
        1,
        0,
    )  # one model, one cache
    (change,) = queries.changed
    assert (change.added, change.removed, change.overlap) == (["id-99"], ["id-7"], 7 / 8)
    assert queries.mean_overlap == 7 / 8
    again = compare(home).queries
    assert again is not None
    assert again.embedded_before == 0


def test_queries_are_asked_in_each_releases_own_space_and_the_worst_come_first(home: Path) -> None:
    release(home, rows(40))
    release(home, rows(40), PIPELINE.replace("hashing}", "hashing, dimensions: 8}"))
    write_queries(home, "red fox", "green tea", "blue whale")
    queries = compare(home).queries
    assert queries is not None
    assert (queries.count, queries.embedded_before, queries.embedded_after) == (3, 3, 3)
    assert [change.overlap for change in queries.changed] == sorted(
        change.overlap for change in queries.changed
    )


def test_the_users_own_queries_stand_before_those_taken_from_documents(home: Path) -> None:
    release(home, rows(8))
    release(home, rows(7))
    own = {"id": "own", "text": "red fox", "from": ""}
    taken = {"id": "taken", "text": "green tea", "from": "id-1"}
    queries = folder_of(home).queries
    for entries, count in (([own, taken], 1), ([taken], 1), ([], None)):
        write_json(queries, {"queries": entries})
        changes = compare(home).queries
        assert (changes.count if changes else None) == count
    queries.unlink()
    assert compare(home).queries is None


class Rejecting(HashingModel):
    """Hashing that has no vector for a certain text."""

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        rejected = {row: "too rude" for row, text in enumerate(inputs) if text == "rude"}
        vectors = super().embed(inputs, input_type).vectors
        vectors[list(rejected)] = np.nan
        return Response(vectors, rejected=rejected)


class RejectingOptions(Hashing):
    model_class = Rejecting


def test_a_query_that_the_provider_refuses_is_counted_and_left_out(home: Path) -> None:
    release(home, rows(40))
    here = live(home)
    spec = here.release.spec.model_copy(update={"model": RejectingOptions()})
    table = replace(here, release=here.release.model_copy(update={"spec": spec}))
    pairs = [QueryPair("a", "rude", "rude"), QueryPair("b", "red fox", "red fox")]
    with EmbeddingCache(Warehouse(home).cache) as cache:
        changes = compare_results(table, table, cache, pairs, "query", print)
    assert (changes.count, changes.without_vector, changes.mean_overlap) == (1, 1, 1)


def test_a_model_that_is_no_longer_the_same_leaves_the_documents_comparable(home: Path) -> None:
    release(home, rows(8))
    release(home, rows(7))
    write_queries(home, "red fox")
    edit_release(home, 1, lambda entry: entry["space"].update(revision="lost"))
    edit_release(home, 2, lambda entry: entry["space"].update(revision="lost"))
    changes = compare(home)
    assert changes.documents.gone.ids == ["id-7"]
    assert changes.queries is None
    (problem,) = changes.problems
    assert "Release 1 of 'p' holds vectors of space" in problem
    assert "compare releases of the current model" in problem


def edit_release(home: Path, number: int, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = folder_of(home).releases
    stored = read_json(path)
    assert stored is not None
    edit(stored["releases"][number - 1])
    write_json(path, stored)


# --- options and metrics


def test_changed_options_have_their_path_and_both_values(home: Path) -> None:
    release(home, rows(40))
    other = PIPELINE.replace("{provider: hashing}", "{provider: hashing, dimensions: 32}")
    release(
        home,
        rows(40),
        other
        + "compression: [int8]\nstore: {kind: lancedb, keep_releases: 3}\nschedule: '@daily'\n",
    )
    changes = {change.option: (change.before, change.after) for change in compare(home).options}
    assert changes == {
        "model.dimensions": (64, 32),
        "compression": ([], [{"kind": "int8"}]),
        "store.keep_releases": (5, 3),
    }


def test_metrics_of_both_are_compared_by_the_way_that_is_better(home: Path) -> None:
    release(home, rows(8))
    release(home, rows(7))
    edit_release(
        home,
        1,
        lambda entry: entry.update(
            metrics={"ndcg_at_10": 0.5, "duplicate_rate": 0.1, "hubness": 1}
        ),
    )
    edit_release(
        home,
        2,
        lambda entry: entry.update(metrics={"ndcg_at_10": 0.75, "duplicate_rate": 0.1, "own": 2}),
    )
    metrics = [
        (change.metric, change.difference, change.better) for change in compare(home).metrics
    ]
    assert metrics == [
        ("ndcg_at_10", 0.25, True),
        ("duplicate_rate", 0, None),
        ("hubness", None, None),
        ("own", None, None),
    ]
    assert [change.better for change in compare(home, 2, 1).metrics] == [False, None, None, None]


def metrics_of(home: Path, before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
    """What is said of each metric of two releases whose figures these are."""
    edit_release(home, 1, lambda entry: entry.update(metrics=before))
    edit_release(home, 2, lambda entry: entry.update(metrics=after))
    return {
        change.metric: (change.difference, change.better, change.beyond_chance)
        for change in compare(home).metrics
    }


def test_what_may_be_chance_is_neither_better_nor_worse(home: Path) -> None:
    release(home, rows(8))
    release(home, rows(7))
    before = {
        "recall_at_10": 0.99, "codec_cosine": 0.9, "hubness": 2.0, "search_p50_ms": 3.0,
        "anisotropy": 0.300001, "effective_rank": 40.0,
    }  # fmt: skip
    after = {
        "recall_at_10": 0.985, "codec_cosine": 0.85, "hubness": 2.03, "search_p50_ms": 9.0,
        "anisotropy": 0.3, "effective_rank": 30.0,
    }  # fmt: skip
    assert metrics_of(home, before, after) == {
        "codec_cosine": (pytest.approx(-0.05), False, True),
        "effective_rank": (-10, False, True),
        "recall_at_10": (pytest.approx(-0.005), None, False),
        "anisotropy": (0, None, False),  # nothing that four decimals show
        "hubness": (pytest.approx(0.03), None, False),
        "search_p50_ms": (6, None, True),  # the machine was busier
    }


@pytest.mark.parametrize(("lost", "certain"), [(1, False), (60, True)])
def test_figures_of_queries_are_worse_only_beyond_chance(
    home: Path, lost: int, certain: bool
) -> None:
    release(home, rows(8))
    release(home, rows(7))
    folder = folder_of(home)
    for entry, worse in zip(read_releases(folder).releases, (0, lost), strict=True):
        ranks = {f"q{n}": 0.0 if n < worse else 1.0 for n in range(128)}
        path = folder.quality / f"{entry.table}-{entry.version}.json"
        write_json(path, {"per_query": {"known_item_mrr": ranks}})
    value = 1 - lost / 128
    names = ("known_item_mrr", "known_item_recall")
    found = metrics_of(home, dict.fromkeys(names, 1.0), dict.fromkeys(names, value))
    expected = (value - 1, False if certain else None, certain)
    assert found == dict.fromkeys(names, expected)


# --- which releases


def test_what_cannot_be_compared_is_refused_with_what_is_kept(home: Path) -> None:
    write_pipeline(home, "p", PIPELINE)
    with pytest.raises(ReleaseError, match="has no release yet"):
        compare(home)
    release(home, rows(8))
    with pytest.raises(ReleaseError, match="no release before 1 to compare it with; it has 1"):
        compare(home)
    release(home, rows(7))
    with pytest.raises(ReleaseError, match="has no release 9; it has 1, 2"):
        compare(home, 9)
    with pytest.raises(ReleaseError, match="has no release 9; it has 1, 2"):
        compare(home, 1, 9)
    with pytest.raises(ReleaseError, match="release 2 cannot differ from itself"):
        compare(home, 2)


def test_the_live_release_is_compared_with_the_one_before_it(home: Path) -> None:
    for count in (8, 7, 6):
        release(home, rows(count))
    assert numbers(compare(home)) == (2, 3)
    rollback(folder_of(home), 2)
    assert numbers(compare(home)) == (1, 2)
    assert numbers(compare(home, 3)) == (3, 2)
    assert numbers(compare(home, 1, 3)) == (1, 3)
    assert compare(home, 1, 3).documents.gone == IdList(2, ["id-6", "id-7"])


def test_after_a_rollback_it_says_what_going_back_has_changed(home: Path) -> None:
    release(home, rows(8))
    release(home, rows(7))
    rollback(folder_of(home), None)
    changes = compare(home)
    assert numbers(changes) == (2, 1)
    assert changes.documents.new.ids == ["id-7"]
    (note,) = changes.problems
    assert "Release 1 is live after a rollback" in note
    assert compare(home, 1, 2).problems == []


def numbers(changes: Diff) -> tuple[int, int]:
    return changes.before.release, changes.after.release


def test_comparing_changes_nothing_of_the_releases(home: Path) -> None:
    release(home, rows(8))
    release(home, rows(7))
    folder = folder_of(home)
    stored = folder.releases.read_text()
    assert isinstance(compare(home).documents, DocumentChanges)
    assert folder.releases.read_text() == stored
