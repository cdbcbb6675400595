"""vector_store: which options of the store change the table, and which only how it is searched."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from embedding_pipelines.explore.table import load_table, load_vectors
from embedding_pipelines.metrics.similarity import cosine_similarity
from embedding_pipelines.providers.base import InputType, Response
from embedding_pipelines.providers.hashing import Hashing, HashingModel
from embedding_pipelines.releases import rollback
from embedding_pipelines.schemas import RESCORING_VECTOR, VECTOR
from embedding_pipelines.search import Searcher
from embedding_pipelines.space import Space
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines.stores import lancedb
from embedding_pipelines.stores._lance import call
from embedding_pipelines_tests.chain import (
    live_rows,
    report,
    run_recorded,
    run_steps,
    write_csv,
    write_pipeline,
)
from embedding_pipelines_tests.conftest import HASHING, PLAIN, UNMEASURED
from embedding_pipelines_tests.decoded import files_with
from embedding_pipelines_tests.stores.tables import token_files

ROWS = [
    (f"id-{n}", f"animal{n} in room{n % 7}", "even" if n % 2 == 0 else "odd") for n in range(300)
]


@pytest.fixture
def built(home: Path) -> Path:
    write_csv(home, "a.csv", ROWS)
    return home


def write(
    home: Path, compression: str, store: str, mode: str = "vector", file: str = HASHING
) -> None:
    options = f"compression: {compression}\nstore: {{kind: lancedb, {store}}}\n"
    write_pipeline(home, "p", f"{file}{options}search: {{mode: {mode}}}\n")


def index_of(home: Path) -> str | None:
    """The kind of the live table's index."""
    release = Searcher(Warehouse(home), "p").release
    table = release.spec.store.table(Warehouse(home).tables, release.table)
    opened = table._open(release.version)  # type: ignore[attr-defined]
    return next((str(index.index_type) for index in call(opened.list_indices)), None)


def test_refine_and_nprobes_reach_searches_without_touching_the_table(built: Path) -> None:
    write(built, "[]", "index_rows: 256")
    made = report(run_steps(built, "p"), "vector_store")
    write(built, "[]", "index_rows: 256, refine: 7, nprobes: 3")
    after = report(run_steps(built, "p"), "vector_store")
    assert (made.changed, after.changed) == (True, False)
    assert after.statistics["version"] == made.statistics["version"]
    store = Searcher(Warehouse(built), "p").release.spec.store
    assert (store.refine, store.nprobes) == (7, 3)  # type: ignore[attr-defined]


def test_another_kind_of_index_takes_the_place_of_the_old_one_and_no_row_is_written(
    built: Path,
) -> None:
    tables = set()
    for options, kind in (
        ("", "IvfSq"),
        (", index: rq", "IvfRq"),
        (", index: none", None),
        (", index: hnsw", "IvfHnswSq"),
    ):
        write(built, "[]", f"index_rows: 256{options}")
        made = report(run_steps(built, "p"), "vector_store")
        tables.add(made.statistics["table"])
        assert made.statistics["added"] == (0 if options else 300)
        assert index_of(built) == kind
    assert len(tables) == 1


def test_int8_codes_move_to_a_table_of_bytes_when_no_index_is_wanted_and_nothing_is_embedded_again(
    built: Path,
) -> None:
    write(built, "[int8]", "index_rows: 256")
    reports, _ = run_recorded(built, "p")
    before = live_rows(built, "p")
    write(built, "[int8]", "index: none")
    again, texts = run_recorded(built, "p")
    after = live_rows(built, "p")
    assert texts == []
    one, other = (
        report(reports, "vector_store").statistics,
        report(again, "vector_store").statistics,
    )
    assert one["table"] != other["table"]
    assert other["added"] == 300
    assert before == after  # the same codes
    assert isinstance(after["id-3#0"][VECTOR][0], int)
    assert (
        Searcher(Warehouse(built), "p").search("animal3 in room3", 1).hits[0].document_id == "id-3"
    )


def test_copies_come_and_go_with_the_codec(built: Path) -> None:
    for compression, kept in (("[binary]", True), ("[{kind: binary, rescore: none}]", False)):
        write(built, compression, "index_rows: 256")
        run_steps(built, "p")
        assert (RESCORING_VECTOR in live_rows(built, "p")["id-3#0"]) is kept
        assert index_of(built) == "IvfFlat"
    write(built, "[{kind: binary, rescore: float16}]", "index: none")
    run_steps(built, "p")
    assert isinstance(live_rows(built, "p")["id-3#0"][RESCORING_VECTOR][0], float)
    assert index_of(built) is None


def test_an_index_is_not_trained_again_for_a_table_that_was_left_for_a_while(built: Path) -> None:
    write(built, "[]", "index_rows: 256")
    run_steps(built, "p")
    before = Searcher(Warehouse(built), "p").release
    write(built, "[int8]", "index_rows: 256")
    run_steps(built, "p")
    write(built, "[]", "index_rows: 256")
    run_steps(built, "p")
    after = Searcher(Warehouse(built), "p").release
    assert after.number == before.number + 2
    assert (after.table, after.version) == (before.table, before.version)


def test_what_a_killed_write_left_in_a_table_goes_when_the_pipeline_moves_to_another(
    built: Path,
) -> None:
    write(built, "[]", "index: none")
    run_steps(built, "p")
    with Searcher(Warehouse(built), "p") as searcher:
        before, hits = searcher.release, searcher.search("animal7", 3).hits
    folder = Warehouse(built).tables / f"{before.table}.lance"
    names = ("_versions/.tmpX", "_versions/9.manifest#1", "_transactions/9-x.txn", "data/x.lance")
    for name in names:
        (folder / name).write_bytes(b"half")
    draft = folder.with_name(f".{before.table}.checksums.json.4f3a.tmp")
    draft.write_bytes(b"{")
    write(built, "[int8]", "index: none")
    run_steps(built, "p")
    assert not draft.exists()
    assert not [name for name in names if (folder / name).exists()]
    rollback(Warehouse(built).pipeline("p"), before.number)
    with Searcher(Warehouse(built), "p") as searcher:
        assert searcher.search("animal7", 3).hits == hits


class OfAnyLength(HashingModel):
    """A model that does not normalize, as BERT's mean of tokens."""

    @property
    def space(self) -> Space:
        return Space(**{**super().space.model_dump(), "normalized": False})

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        lengths = np.array([[1 + len(text)] for text in inputs], np.float32)
        return Response(super().embed(inputs, input_type).vectors * lengths)


@pytest.mark.parametrize("compression", ["", "compression: [float16]\n"])
def test_vectors_stand_in_the_table_at_unit_length(home: Path, compression: str) -> None:
    """Whatever lengths a model gives: a program that multiplies gets cosines."""
    write_pipeline(home, "p", HASHING + compression)
    write_csv(home, "a.csv", [(f"id{n}", f"fox {n}" * (n + 1), "x") for n in range(6)])
    model = OfAnyLength(Hashing(), home)
    run_steps(home, "p", model)
    stored, given = load_vectors(home, "p", "stored"), load_vectors(home, "p")
    texts = load_table(home, "p", None)["text"].tolist()
    assert np.allclose(np.linalg.norm(stored, axis=1), 1, atol=1e-3)
    assert np.allclose(given, model.embed(texts, "document").vectors, rtol=1e-5)
    with Searcher(home, "p", model) as searcher:
        hits = searcher.search(texts[0], 6).hits
        vectors = [searcher.model.embed([hit.text], "document").vectors[0] for hit in hits]
        query = searcher.model.embed([texts[0]], "query").vectors[0]
    expected = [cosine_similarity(query, vector) for vector in vectors]
    assert [hit.score for hit in hits] == pytest.approx(expected, abs=1e-3)
    assert expected == sorted(expected, reverse=True)


@pytest.mark.parametrize(
    ("later", "mode"), [("deletions", "vector"), ("edits", "vector"), ("deletions", "hybrid")]
)
def test_a_deleted_text_is_in_no_file_after_a_stated_number_of_releases(
    built: Path, monkeypatch: pytest.MonkeyPatch, later: str, mode: str
) -> None:
    """`keep_releases` + MAX_UPDATES + 1 of them, whatever changes: here begun where the files have
    just been merged, which is the longest way. The index is trained, rows are in its files too."""
    monkeypatch.setattr(lancedb, "MAX_UPDATES", 2)
    marker = "an aardvark whose text must go"
    write(built, "[]", "index_rows: 256, keep_releases: 2", mode, PLAIN + UNMEASURED)
    rows = [*ROWS, ("gone", f"Here is {marker}.", "odd")]

    def change(number: int) -> None:
        if later == "deletions":
            rows.pop(0)
        else:
            rows[number] = (f"id-{number}", f"another animal{number}", "odd")
        write_csv(built, "a.csv", rows)
        run_steps(built, "p")

    for number in range(3):
        change(number)
    table = live_rows(built, "p")
    assert any(marker in row["text"] for row in table.values())
    rows.remove(("gone", f"Here is {marker}.", "odd"))
    with_its_words = token_files(built)
    assert bool(with_its_words) == (mode == "hybrid")
    holding = []
    for number in range(3, 3 + 1 + 2 + 3):  # the one that deletes it, and those that follow
        change(number)
        holding.append(files_with(built, marker))
    assert holding[0]  # the release before holds it still, to go back to
    assert holding[-1] == []
    assert with_its_words.isdisjoint(
        token_files(built)
    )  # `test_text_index.py` says what is in them
